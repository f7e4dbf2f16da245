"""`generate`: text in, text stream out. See `tandem/coordinator.py` for the decoding cycle's parts."""

from tandem.triton.generate_model import GenerateModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
