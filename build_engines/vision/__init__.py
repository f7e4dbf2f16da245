"""Image classifiers: checkpoint to ONNX to quantized engines, and the report that compares them."""
