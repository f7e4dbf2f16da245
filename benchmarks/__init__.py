"""Measurements that anyone can rerun; each prints the command that made it, medians and spread."""
