"""Metrics: update, compute, reset."""
