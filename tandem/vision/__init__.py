"""Image classification: from a picture to class scores, without a word of Triton."""
