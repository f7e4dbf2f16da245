"""The trained drafter of the default target: its data, its training, its measurement and its engine."""

WEIGHTS_FILE = "model.safetensors"
