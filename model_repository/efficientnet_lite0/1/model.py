"""`efficientnet_lite0` on a CPU engine; on a GPU the TensorRT backend replaces it: `tandem/vision/classifier.py`."""

from tandem.triton.classifier_model import ClassifierModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
