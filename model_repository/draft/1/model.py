"""`draft`: the executor of the draft model. See `tandem/step.py` for the contract."""

from tandem.triton.executor_models import DraftModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
