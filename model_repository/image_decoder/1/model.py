"""`image_decoder`: image files → the pixels that a classifier takes. See `tandem/vision/image_file.py`."""

from tandem.triton.decoder_model import DecoderModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
