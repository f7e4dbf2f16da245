"""Offline: checkpoint to engine. `python -m build_engines --help` explains the commands."""
