"""The only part of tandem that imports triton_python_backend_utils."""
