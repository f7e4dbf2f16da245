"""Speculative and batched decoding of language models, used by the Triton models of this repository."""
