"""Finds, starts and stops the real Triton server."""
