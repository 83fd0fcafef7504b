"""Decoder-only language models, written once and driven by data: a family is an entry of the registry."""
