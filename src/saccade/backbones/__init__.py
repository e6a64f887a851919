"""Backbones: pixels to features; each publishes its channels, strides and explain layers."""
