"""A sample as torchvision's v2 transforms take it: its images are changed, all else passes.

Nothing of torchvision or Pillow is imported unless an object of theirs is there already.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]

# Pillow's modes of more than 8 bits, which its own conversion clips at 255.
_DEEP = ("I", "F")
# Modes whose channels are colours: an erased or mixed palette index would be any colour.
_MODES = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV")


def change_sample(sample: Any, change: Change, *, moves_pixels: bool) -> Any:
    """Change the images of a sample and keep its structure: tuples, lists and mappings of anything.

    Images are PIL images and ``tv_tensors.Image``; where there is none, the first plain tensor is
    the image, as in torchvision's v2. Masks, boxes, labels and the like pass as they came.

    Args:
        sample: The structure.
        change: Maps a tensor [..., C, H, W] to a changed one.
        moves_pixels: Whether masks and boxes would be wrong afterwards.

    Raises:
        TypeError: There is no image, one has a mode that is not of colours, masks or boxes come
            with a change that moves pixels, or there is a video.
    """
    leaves: list[Any] = []
    _walk(sample, leaves.append)
    if any(isinstance(leaf, _tv_tensor("Video")) for leaf in leaves):
        raise TypeError(
            "images must not come as or with a video, got a tv_tensors.Video; use "
            "torchvision.transforms.v2 for videos"
        )
    images = [leaf for leaf in leaves if is_image(leaf)]
    if not images:
        images = [leaf for leaf in leaves if is_plain_tensor(leaf)][:1]
    if not images:
        raise TypeError(
            "images must be a torch.Tensor, a PIL image, a tv_tensors.Image or a sample with one, "
            f"got {type(sample).__name__}"
        )
    if moves_pixels and (bound := [leaf for leaf in leaves if _is_bound_to_pixels(leaf)]):
        raise TypeError(
            f"masks and boxes must not come with a transform that moves pixels, got "
            f"{type(bound[0]).__name__}; use torchvision.transforms.v2 for those"
        )
    chosen = {id(image) for image in images}
    return _walk(sample, lambda leaf: change_image(leaf, change) if id(leaf) in chosen else leaf)


def is_image(value: object) -> bool:
    """Whether ``value`` is a PIL image or a ``tv_tensors.Image``."""
    return isinstance(value, (_loaded("PIL.Image", "Image"), _tv_tensor("Image")))


def is_plain_tensor(value: object) -> bool:
    """Whether ``value`` is a tensor that does not say what it is: a mask or a video does."""
    return isinstance(value, Tensor) and not isinstance(value, _tv_tensor("TVTensor"))


def change_image(image: Any, change: Change) -> Any:
    """Change a tensor, a ``tv_tensors.Image`` or a PIL image, and return one of the same type."""
    if isinstance(image, _loaded("PIL.Image", "Image")):
        return _change_pil(image, change)
    if is_plain_tensor(image):
        return change(image)
    from torchvision import tv_tensors

    return tv_tensors.wrap(change(image.as_subclass(Tensor)), like=image)


def _change_pil(image: Any, change: Change) -> Any:
    from torchvision.transforms.v2 import functional

    if image.mode not in _MODES:
        advice = "use image.convert('RGB')"
        if image.mode.startswith(_DEEP):
            advice = "scale its values to 0..255 and make them uint8 first, as convert() clips them"
        raise TypeError(
            f"images must have a mode of {', '.join(_MODES)}, got a PIL image of mode "
            f"{image.mode}; {advice}"
        )
    changed = change(functional.pil_to_tensor(image))
    if changed.dtype != torch.uint8:
        raise TypeError(
            f"images must be tensors for a transform that makes {changed.dtype}, got a PIL image; "
            "use torchvision.transforms.v2.PILToTensor before it"
        )
    return functional.to_pil_image(changed, mode=image.mode)


def _walk(value: Any, visit: Callable[[Any], Any]) -> Any:
    """Visit every leaf in order and build the structure anew of what ``visit`` returns."""
    if isinstance(value, Mapping):
        items = {key: _walk(inner, visit) for key, inner in value.items()}
        if isinstance(value, defaultdict):
            return type(value)(value.default_factory, items)
        return items if type(value) is dict else type(value)(items)  # type: ignore[call-arg]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_walk(inner, visit) for inner in value))
    if type(value) in (tuple, list):
        return type(value)([_walk(inner, visit) for inner in value])
    return visit(value)


def _is_bound_to_pixels(value: object) -> bool:
    kinds = ("Mask", "BoundingBoxes", "KeyPoints")
    return isinstance(value, tuple(map(_tv_tensor, kinds)))


def _tv_tensor(name: str) -> Any:
    return _loaded("torchvision.tv_tensors", name)


def _loaded(module: str, name: str) -> Any:
    """Return a class of a module that is imported, else an empty tuple, which matches nothing."""
    return getattr(sys.modules.get(module), name, ())
