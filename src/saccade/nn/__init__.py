"""Layers, one idea per file."""
