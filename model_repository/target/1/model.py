"""`target`: the executor of the target model. See `tandem/step.py` for the contract."""

from tandem.triton.executor_models import TargetModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
