"""Decodes one image file to 8-bit RGB with Pillow (imported when first used)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fasttricks.data._errors import DataError, reason_of

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 4096 * 4096
"""An image with more pixels is refused before it is decoded."""

# the formats of the suffixes we look for: not whatever Pillow happens to have a plug-in for
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF")
_ORIENTATION = 0x0112


def decode_image(path: Path) -> npt.NDArray[np.uint8]:
    """The image at ``path`` as RGB, shape [H, W, 3].

    Grey and palette images become RGB, an alpha channel is dropped (the colours below it stay as
    they are), of 16 bits the upper 8 are kept, and the EXIF orientation is applied.

    Raises:
        DataError: the file is no image of a known format, is damaged, or has more than
            ``MAX_PIXELS`` pixels.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("reading image files needs Pillow: pip install pillow") from None

    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height <= MAX_PIXELS:
                return as_rgb(image)
            size = f"{image.width}x{image.height}"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        size = "far more"
    except MemoryError:
        raise
    # on bad files Pillow's plug-ins raise OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        raise DataError(
            f"cannot decode the image {path} ({reason_of(error)}): replace or remove the file"
        ) from None
    raise DataError(
        f"the image {path} must have at most {MAX_PIXELS} pixels, got {size}: resize or remove it"
    )


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    from PIL import ImageOps

    if image.getexif().get(_ORIENTATION, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def as_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    image = upright(image)
    if image.mode == "F":  # of which nobody knows what is white
        raise ValueError("its pixels are floating-point numbers")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        grey = (np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("P", "PA"):  # straight to RGB warns where the palette has transparency
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))
