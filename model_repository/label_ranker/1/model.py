"""`label_ranker`: logits → probabilities and the names of the likeliest classes. See `tandem/vision/ranking.py`."""

from tandem.triton.ranker_model import RankerModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
