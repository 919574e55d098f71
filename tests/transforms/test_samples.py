"""Transforms among torchvision's: PIL images, tv_tensors, samples, Compose, DataLoader workers."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from fasttricks import (
    Cutout,
    Normalize,
    Pipeline,
    RandomErasing,
    RandomHorizontalFlip,
    RandomTranslate,
    Transform,
)


def pil(mode="RGB", size=(20, 16)):
    rng = np.random.default_rng(0)
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(1, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels, mode=None).convert(mode)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_pil_image_comes_back_as_one_with_the_pixels_of_the_tensor(mode):
    image = pil(mode)
    before = np.array(image)
    erased = Cutout(8)(image, generator=seeded())
    assert (type(erased), erased.mode, erased.size) == (Image.Image, mode, image.size)
    tensor = v2.functional.pil_to_tensor(image)
    by_tensor = Cutout(8)(tensor, generator=seeded())
    assert torch.equal(v2.functional.pil_to_tensor(erased), by_tensor)
    assert np.array_equal(np.array(image), before)
    assert not torch.equal(by_tensor, tensor)


def test_a_tv_tensor_stays_one():
    image = tv_tensors.Image(torch.ones(3, 16, 16))
    erased = Cutout(8)(image, generator=seeded())
    assert type(erased) is tv_tensors.Image
    assert torch.equal(
        erased.as_subclass(torch.Tensor), Cutout(8)(torch.ones(3, 16, 16), generator=seeded())
    )


def test_in_a_compose_targets_boxes_and_masks_pass_as_they_came():
    compose = v2.Compose([v2.ToImage(), Cutout(8, inside=True), v2.ToDtype(torch.float32)])
    boxes = tv_tensors.BoundingBoxes([[0, 0, 4, 4]], format="XYXY", canvas_size=(16, 20))
    mask = tv_tensors.Mask(torch.ones(1, 16, 20, dtype=torch.uint8))
    target = {"boxes": boxes, "masks": mask, "label": 3, "name": "cat"}
    image, out = compose(pil(), target)
    assert type(image) is tv_tensors.Image
    assert (image == 0).all(0).sum() == 64
    assert torch.equal(out["boxes"], boxes)
    assert torch.equal(out["masks"], mask)
    assert (out["label"], out["name"]) == (3, "cat")
    alone = v2.Compose([Cutout(8), v2.ToImage()])(pil())
    assert type(alone) is tv_tensors.Image


def test_the_structure_of_a_sample_is_kept():
    Pair = namedtuple("Pair", ["image", "label"])
    images = torch.ones(3, 8, 8)
    sample = {"pair": Pair(images, 5), "more": [torch.zeros(2), ("text", None)]}
    out = Cutout(4, inside=True)(sample)
    assert isinstance(out["pair"], Pair)
    assert out["pair"].label == 5
    assert (out["pair"].image == 0).sum() == 48
    assert out["more"][0] is sample["more"][0]  # only the first plain tensor is the image
    assert out["more"][1] == ("text", None)
    result = Cutout(4)(images, 7)
    assert (type(result), result[1]) == (tuple, 7)


def test_mappings_keep_their_type():
    for sample in (defaultdict(list, image=pil()), OrderedDict(label=3, image=pil())):
        out = Cutout(4)(sample)
        assert type(out) is type(sample)
        assert list(out) == list(sample)
    assert Cutout(4)(defaultdict(list, image=pil()))["boxes"] == []


def test_all_images_of_a_sample_get_the_same_squares():
    first, second = tv_tensors.Image(torch.ones(3, 16, 16)), tv_tensors.Image(torch.ones(1, 16, 16))
    a, b = Cutout(6)((first, second))
    assert torch.equal(a[0] == 0, b[0] == 0)


def test_what_moves_pixels_refuses_masks_and_boxes_but_takes_labels():
    mask = tv_tensors.Mask(torch.ones(16, 16, dtype=torch.uint8))
    image = tv_tensors.Image(torch.ones(3, 16, 16))
    for transform in (RandomHorizontalFlip(), RandomTranslate(2), Pipeline([RandomTranslate(2)])):
        with pytest.raises(TypeError, match="masks and boxes must not come .* got Mask"):
            transform(image, mask)
        assert transform(image, 3)[1] == 3
    for transform in (Cutout(4), RandomErasing(), Normalize(0.5, 0.5), Pipeline([Cutout(4)])):
        assert transform(image, mask)[1] is mask


def test_a_transform_of_ones_own_says_whether_it_moves_pixels():
    class Own(Transform):
        def sample(self, draws, shape):
            return None

        def apply(self, images, params):
            return 1 - images

    class Invert(Own):
        moves_pixels = False

    mask = tv_tensors.Mask(torch.ones(16, 16, dtype=torch.uint8))
    image = tv_tensors.Image(torch.ones(3, 16, 16))
    assert Pipeline([Invert(), Cutout(4)])(image, mask)[1] is mask
    with pytest.raises(TypeError, match="masks and boxes must not come"):
        Pipeline([Cutout(4), Own()])(image, mask)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (3, "got int"),
        (np.zeros((8, 8, 3)), "got ndarray"),
        ({"label": 3}, "got dict"),
        (pil().convert("P"), r"got a PIL image of mode P; use image.convert\('RGB'\)"),
        (Image.new("I;16", (8, 8)), "mode I;16; scale its values to 0..255 and make them uint8"),
        (Image.new("I", (8, 8)), "mode I; scale its values to 0..255 and make them uint8"),
        (Image.new("F", (8, 8)), "mode F; scale its values to 0..255 and make them uint8"),
        (tv_tensors.Mask(torch.ones(1, 8, 8, dtype=torch.uint8)), "got Mask"),
        (
            tv_tensors.BoundingBoxes([[0, 0, 4, 4]], format="XYXY", canvas_size=(8, 8)),
            "got BoundingBoxes",
        ),
    ],
)
def test_what_holds_no_image_is_refused(images, message):
    with pytest.raises(TypeError, match=message):
        Cutout(4)(images)


def test_a_video_is_refused_wherever_it_comes():
    video = tv_tensors.Video(torch.ones(2, 3, 8, 8))
    image = tv_tensors.Image(torch.ones(3, 8, 8))
    for sample in (video, (image, video), {"clip": video, "label": 3}):
        with pytest.raises(TypeError, match="got a tv_tensors.Video; use torchvision.transforms"):
            Cutout(4)(sample)


def test_a_parameter_is_a_tensor_like_any_other():
    images = torch.nn.Parameter(torch.ones(3, 8, 8), requires_grad=False)
    assert (Cutout(4, inside=True)(images) == 0).sum() == 48
    assert (Cutout(4, inside=True)(images, 5)[0] == 0).sum() == 48


def test_a_float_result_of_a_pil_image_is_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r"makes torch.float32, got a PIL image; use .*PILToTensor"):
        Normalize(0.5, 0.5)(pil())


class Squares(Dataset):
    """Images of ones, erased by the worker that loads them."""

    def __len__(self):
        return 32

    def __getitem__(self, index):
        return Cutout(4)(torch.ones(1, 8, 8)), index


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_a_data_loader_with_workers_each_image_gets_its_own_square():
    batches = list(DataLoader(Squares(), batch_size=16, num_workers=2))
    images = torch.cat([images for images, _ in batches])
    assert len(images.flatten(1).unique(dim=0)) > 12


def test_plain_tensors_need_neither_torchvision_nor_pillow():
    code = (
        "import sys, torch; from fasttricks import Cutout; Cutout(4)(torch.ones(3, 8, 8)); "
        "Cutout(4)((torch.ones(3, 8, 8), 1)); "
        "print([m for m in ('torchvision', 'PIL') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
