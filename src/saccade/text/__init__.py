"""Texts to numbers: tokens, vocabularies, prompts."""
