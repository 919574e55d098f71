"""scikit-learn's handwritten digits: real images without a download, for runs of seconds."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fasttricks._checks import check_integer
from fasttricks.data._image_set import ImageSet
from fasttricks.data._source import Pair

_TEST_IMAGES = 360
_SPLIT_SEED = 0


def read_digits(image_size: int = 32) -> Pair:
    """Handwritten digits as ``(train, test)``: 1,437 and 360 images of ten classes.

    The 8x8 images with 17 grey levels are enlarged bilinearly, stretched to 0..255 and given three
    equal channels, so that any recipe for CIFAR-10 runs on them unchanged. The split is fixed:
    every class gives a fifth to the test set, to within one image.

    Args:
        image_size: height and width in pixels, at least 8.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: image_size is less than 8.

    Example:
        >>> train, test = read_digits()
        >>> train
        ImageSet('digits (scikit-learn)': 1437 images of 3x32x32 (CxHxW), 10 classes)

    Reference:
        Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
    """
    check_integer("image_size", image_size, minimum=8)
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("read_digits needs scikit-learn: pip install scikit-learn") from None
    digits = load_digits()
    grey = torch.from_numpy(digits.images).to(torch.float64)[:, None]  # [N, 1, 8, 8], 0..16
    grey = F.interpolate(grey, size=(image_size, image_size), mode="bilinear", align_corners=False)
    images = (grey * (255 / 16)).round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    everything = ImageSet(images, labels, tuple("0123456789"), "digits (scikit-learn)")
    return everything.split(_TEST_IMAGES, seed=_SPLIT_SEED)
