"""Explanation: why a model says what it says, and how far that answer can be trusted."""
