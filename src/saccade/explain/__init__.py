"""Explanation: which pixels decided, and how far to trust the answer."""
