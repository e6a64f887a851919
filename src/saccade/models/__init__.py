"""Architectures, one per file: config, outputs, model, variants."""
