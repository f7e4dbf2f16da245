"""`target_2`: another executor of the target model, beside `target`."""

from tandem.triton.executor_models import TargetModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
