from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Subset, TensorDataset

from fasttricks.data import ImageSet


def image_set(labels: list[int], *, classes: int = 3, channels: int = 3, size: int = 4) -> ImageSet:
    generator = torch.Generator().manual_seed(len(labels))
    shape = (len(labels), channels, size, size)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.tensor(labels), tuple("abcdefghij"[:classes]), "letters")


def test_properties_say_what_the_tensors_hold():
    images = torch.zeros(5, 1, 3, 7, dtype=torch.uint8)
    letters = ImageSet(images, torch.tensor([0, 1, 0, 1, 0]), ("a", "b", "c"), "letters")
    assert (len(letters), letters.num_classes, letters.channels) == (5, 3, 1)
    assert letters.image_size == (3, 7)
    assert repr(letters) == "ImageSet('letters': 5 images of 1x3x7 (CxHxW), 3 classes)"


def test_images_get_channels_last_storage_and_keep_their_values():
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    stored = ImageSet(images, torch.tensor([0, 0]), ("a",), "one").images
    assert stored.permute(0, 2, 3, 1).is_contiguous()
    assert torch.equal(stored, images)


def test_channels_last_images_are_taken_without_a_copy():
    images = torch.zeros(2, 4, 5, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    stored = ImageSet(images, torch.tensor([0, 0]), ("a",), "one").images
    assert stored.data_ptr() == images.data_ptr()


def test_a_set_cannot_be_changed_by_assignment():
    with pytest.raises(dataclasses.FrozenInstanceError):
        image_set([0, 1]).name = "other"  # type: ignore[misc]


GOOD: dict[str, Any] = {
    "images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
    "labels": torch.tensor([0, 1]),
    "classes": ("a", "b"),
    "name": "letters",
}


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("images", [[0]], TypeError, "images must be a torch.Tensor, got list"),
        ("images", torch.zeros(2, 3, 4, 4), TypeError, "got dtype=torch.float32"),
        ("images", torch.zeros(2, 4, 4, dtype=torch.uint8), ValueError, r"shape=\(2, 4, 4\)"),
        ("images", torch.zeros(0, 3, 4, 4, dtype=torch.uint8), ValueError, r"\(0, 3, 4, 4\)"),
        ("images", torch.zeros(3, 3, 4, 4, dtype=torch.uint8), ValueError, "3 images and 2 labels"),
        ("labels", [0, 1], TypeError, "labels must be a torch.Tensor, got list"),
        ("labels", torch.tensor([0.0, 1.0]), TypeError, "whole-number dtype, got .*float32"),
        ("labels", torch.tensor([False, True]), TypeError, "whole-number dtype, got .*bool"),
        ("labels", torch.tensor([[0], [1]]), ValueError, r"got shape=\(2, 1\)"),
        ("labels", torch.tensor([0, 2]), ValueError, "between 0 and 1 .*, got 2"),
        ("labels", torch.tensor([-1, 0]), ValueError, "between 0 and 1 .*, got -1"),
        ("classes", "ab", TypeError, "got classes='ab'"),
        ("classes", ("a", 1), TypeError, "only str, got 1"),
        ("classes", ("a", "a"), ValueError, "got 'a' more than once"),
        ("name", None, TypeError, "got name=None"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_came(argument, value, error, message):
    with pytest.raises(error, match=message):
        ImageSet(**{**GOOD, argument: value})


def test_subset_takes_images_and_labels_in_the_given_order():
    whole = image_set([0, 1, 2, 1])
    part = whole.subset([3, 0, 3])
    assert torch.equal(part.images, torch.stack([whole.images[i] for i in (3, 0, 3)]))
    assert part.labels.tolist() == [1, 0, 1]
    assert (part.classes, part.name) == (whole.classes, whole.name)
    assert part.images.permute(0, 2, 3, 1).is_contiguous()


@pytest.mark.parametrize("indices", [torch.tensor([1, 2]), range(1, 3), (1, 2)])
def test_subset_takes_tensors_and_sequences(indices):
    assert image_set([0, 1, 2]).subset(indices).labels.tolist() == [1, 2]


@pytest.mark.parametrize("dtype", ["i8", "i4", "u1", "u2"])
def test_subset_takes_arrays_forwards_and_backwards(dtype):
    numbers = np.arange(4, dtype=dtype)
    whole = image_set([0, 1, 2, 1])
    assert torch.equal(whole.subset(numbers).images, whole.images)
    assert torch.equal(whole.subset(numbers[::-1]).images, whole.images.flip(0))


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([], ValueError, "at least one image"),
        ([0, 3], ValueError, "between 0 and 2, got 3"),
        ([-1], ValueError, "between 0 and 2, got -1"),
        ([0.5], TypeError, "torch.float32"),
        ([None], TypeError, r"indices must be whole numbers, got list \(.*NoneType\)"),
        (["1"], TypeError, r"indices must be whole numbers, got list \("),
        (None, TypeError, r"indices must be whole numbers, got NoneType \("),
        (torch.tensor([True, False, True]), TypeError, "torch.bool"),
        (torch.tensor([[0]]), ValueError, r"shape=\(1, 1\)"),
    ],
)
def test_subset_refuses_what_is_no_index(indices, error, message):
    with pytest.raises(error, match=message):
        image_set([0, 1, 2]).subset(indices)


@given(
    labels=st.lists(st.integers(0, 3), min_size=2, max_size=40),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_split_is_a_partition_with_each_class_in_its_share(labels, seed, data):
    count = data.draw(st.integers(1, len(labels) - 1))
    # the pixel says which image it was
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    rest, held_out = ImageSet(images, torch.tensor(labels), tuple("abcd"), "x").split(count, seed)
    kept, held = rest.images.flatten().tolist(), held_out.images.flatten().tolist()
    assert len(held) == count
    assert sorted(kept + held) == list(range(len(labels)))
    assert kept == sorted(kept)
    assert held == sorted(held)
    for label in set(labels):
        share = labels.count(label) * count / len(labels)
        assert abs(held_out.labels.tolist().count(label) - share) < 1


@given(
    small=st.integers(1, 40),
    size=st.integers(1, 4),
    others=st.lists(st.integers(1, 80), max_size=4),
    part=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_many_small_classes_of_one_size_take_nothing_from_the_others(
    small, size, others, part, seed
):
    sizes = torch.tensor([size] * small + others)
    labels = torch.arange(len(sizes)).repeat_interleave(sizes)
    number = len(labels)
    assume(number > 1)
    count = min(max(round(part * number), 1), number - 1)
    names = tuple(map(str, range(len(sizes))))
    pixels = torch.zeros(number, 1, 1, 1, dtype=torch.uint8)
    _, held_out = ImageSet(pixels, labels, names, "x").split(count, seed)
    given_by = torch.bincount(held_out.labels, minlength=len(sizes))
    assert len(held_out) == count
    # times N, in whole numbers
    assert (given_by * number - sizes * count).abs().max() < number


@pytest.mark.parametrize("count", [4, 6, 10])
def test_a_split_of_classes_of_one_size_takes_the_first_of_each_in_the_shuffled_order(count):
    """With equal sizes that is also what ranking by (place + 1/2) / size gives."""
    labels = torch.arange(24) % 4
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(5)).tolist()
    seen, ranked = [0] * 4, []
    for position, image in enumerate(shuffled):
        ranked.append((seen[image % 4], position, image))
        seen[image % 4] += 1
    expected = sorted(image for _, _, image in sorted(ranked)[:count])
    pixels = torch.arange(24, dtype=torch.uint8).view(-1, 1, 1, 1)
    _, held_out = ImageSet(pixels, labels, tuple("abcd"), "x").split(count, seed=5)
    assert held_out.images.flatten().tolist() == expected


def test_which_of_equal_classes_gives_one_more_depends_on_the_seed():
    whole = image_set([0, 1, 2] * 4)
    assert {int(whole.split(1, seed)[1].labels) for seed in range(40)} == {0, 1, 2}


def test_split_depends_on_the_seed_and_on_nothing_else():
    whole = image_set([0, 1] * 20)
    torch.manual_seed(1)
    first = whole.split(10, seed=3)[1].images
    torch.manual_seed(2)
    assert torch.equal(first, whole.split(10, seed=3)[1].images)
    assert not torch.equal(first, whole.split(10, seed=4)[1].images)


def test_split_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    image_set([0, 1] * 5).split(4)
    assert torch.equal(state, torch.get_rng_state())


def test_split_takes_numbers_of_numpy():
    whole = image_set([0, 1] * 20)
    expected = whole.split(10, seed=3)[1].images
    assert torch.equal(whole.split(np.uint8(10), seed=np.uint32(3))[1].images, expected)


def test_split_and_subset_do_not_depend_on_the_default_device():
    whole = image_set([0, 1] * 20)
    rest, held_out = whole.split(10, seed=3)
    with torch.device("meta"):
        parts = whole.split(10, seed=3)
        first = whole.subset([1, 0])
    assert torch.equal(parts[0].images, rest.images)
    assert torch.equal(parts[1].images, held_out.images)
    assert first.labels.tolist() == [1, 0]


def test_split_takes_a_fraction():
    rest, held_out = image_set([0, 1] * 10).split(0.25)
    assert (len(rest), len(held_out)) == (15, 5)


@pytest.mark.parametrize(
    ("holdout", "message"),
    [
        (4, r"got holdout=4 \(4 images\) of a set of 4"),
        (0, "at least 1, got holdout=0"),
        (1.0, r"got holdout=1.0 \(4 images\) of a set of 4"),
        (0.01, r"got holdout=0.01 \(0 images\)"),
        (1.5, "holdout must be between 0 and 1, got holdout=1.5"),
    ],
)
def test_split_refuses_to_leave_a_part_empty(holdout, message):
    with pytest.raises(ValueError, match=message):
        image_set([0, 1, 0, 1]).split(holdout)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_mean_std_equals_torch_in_double_precision(number, channels, height, width):
    shape = (number, channels, height, width)
    generator = torch.Generator().manual_seed(sum(shape))
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    mean, std = ImageSet(images, torch.zeros(number).long(), ("a",), "x").mean_std()
    units = images.double() / 255
    expected_std = units.std(dim=(0, 2, 3), correction=0)
    expected_std[expected_std == 0] = 1  # a single pixel
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), units.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(torch.tensor(std, dtype=torch.float64), expected_std)


def test_a_channel_that_is_the_same_everywhere_has_no_deviation_of_zero():
    images = torch.tensor([[10, 200], [30, 200]], dtype=torch.uint8).view(2, 2, 1, 1)
    mean, std = ImageSet(images, torch.zeros(2).long(), ("a",), "opaque").mean_std()
    assert mean == pytest.approx((20 / 255, 200 / 255))
    assert std == pytest.approx((10 / 255, 1.0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_labels_of_any_whole_numbers_become_int64(dtype):
    labels = ImageSet(**{**GOOD, "labels": torch.tensor([0, 1], dtype=dtype)}).labels
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 1]


# From data sets of pairs --------------------------------------------------------------------------


class Pairs(list):
    """A list of pairs with the classes' names, as torchvision's data sets have."""

    classes = ("cat", "dog", "owl")


def pictures(*modes, size=(7, 6)):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    return Pairs((image.convert(mode), number % 2) for number, mode in enumerate(modes))


def test_a_data_set_of_pictures_becomes_a_set_with_its_classes():
    pairs = pictures("RGB", "RGB", "RGBA")
    image_set = ImageSet.from_dataset(pairs)
    assert torch.equal(image_set.images[0].permute(1, 2, 0), torch.tensor(np.array(pairs[0][0])))
    assert torch.equal(image_set.images[0], image_set.images[2])
    assert image_set.labels.tolist() == [0, 1, 0]
    assert (image_set.classes, image_set.name) == (("cat", "dog", "owl"), "Pairs")


def test_grey_pictures_stay_grey_unless_others_are_coloured():
    grey = ImageSet.from_dataset(pictures("L", "1", "LA"))
    assert grey.images.shape == (3, 1, 7, 6)
    mixed = ImageSet.from_dataset(pictures("L", "RGB"))
    assert mixed.images.shape == (2, 3, 7, 6)
    assert torch.equal(mixed.images[0, 0], grey.images[0, 0])
    assert torch.equal(mixed.images[0, 0], mixed.images[0, 2])


@pytest.mark.parametrize("size", [5, (5, 4)])
def test_pictures_of_any_size_are_resized(size):
    pairs = [*pictures("RGB"), *pictures("RGB", size=(9, 12))]
    with pytest.raises(ValueError, match=r"one size, got 6x7 and 12x9 \(image 1\); pass size="):
        ImageSet.from_dataset(pairs)
    image_set = ImageSet.from_dataset(pairs, size=size, classes=("a", "b"), name="mine")
    assert image_set.image_size == (size if isinstance(size, tuple) else (size, size))
    assert (image_set.classes, image_set.name) == (("a", "b"), "mine")


def test_tensors_and_arrays_will_do_and_labels_are_names_where_there_are_none():
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    arrays = ImageSet.from_dataset(list(zip(pixels, np.array([0, 4]), strict=True)))
    tensors = TensorDataset(torch.from_numpy(pixels).movedim(-1, 1), torch.tensor([[0], [4]]))
    for image_set in (arrays, ImageSet.from_dataset(tensors)):
        assert torch.equal(image_set.images.permute(0, 2, 3, 1), torch.from_numpy(pixels))
        assert image_set.classes == ("0", "1", "2", "3", "4")


def test_progress_is_told():
    seen = []
    ImageSet.from_dataset(pictures("RGB", "L"), progress=lambda *what: seen.append(what))
    assert seen == [(2, 2, "reading images")]


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ([], ValueError, "dataset must hold at least one image, got none"),
        ([3], TypeError, "pairs of an image and a label, got int as image 0"),
        ([("cat.png", 0)], TypeError, "Pillow's, tensors or arrays, got str as image 0"),
        ([(torch.zeros(3, 4, 4), 0)], TypeError, "uint8 .* got torch.float32 .* leave out"),
        ([(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 0)], TypeError, r"\[1, 3, 4, 4\]"),
        ([(torch.zeros(3, 4, 4, dtype=torch.uint8), "cat")], TypeError, "numbers, got str with"),
        ([(torch.zeros(3, 4, 4, dtype=torch.uint8), -1)], ValueError, "between 0 and"),
        ([(torch.zeros(c, 4, 4, dtype=torch.uint8), 0) for c in (2, 3)], ValueError, r"\[2, 3\]"),
    ],
)
def test_what_is_no_data_set_of_images_is_named(pairs, error, message):
    with pytest.raises(error, match=message):
        ImageSet.from_dataset(pairs)


def test_a_set_is_a_data_set_for_torchs_loaders():
    images = torch.arange(5 * 3 * 4 * 4, dtype=torch.uint8).view(5, 3, 4, 4)
    image_set = ImageSet(images, torch.tensor([0, 1, 2, 1, 0]), classes=tuple("abc"), name="x")
    batches = list(DataLoader(image_set, batch_size=2))
    assert [tuple(one.shape) for one, _ in batches] == [(2, 3, 4, 4), (2, 3, 4, 4), (1, 3, 4, 4)]
    assert torch.equal(torch.cat([one for one, _ in batches]), images)
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1, 2, 1, 0]
    assert [label for _, label in image_set] == [0, 1, 2, 1, 0]
    assert image_set[-1][1] == image_set[np.int64(0)][1] == 0
    again = ImageSet.from_dataset(image_set, name="x")
    assert torch.equal(again.images, images)
    assert again.classes == image_set.classes
    with pytest.raises(IndexError):
        image_set[5]
    with pytest.raises(TypeError):
        image_set["a"]


@pytest.mark.parametrize("name", ["image", "img"])
def test_rows_with_names_will_do(name):
    class Rows(list):
        features = {"label": SimpleNamespace(names=["cat", "dog", "owl"])}  # noqa: RUF012

    pairs = pictures("RGB", "L")
    rows = Rows({name: image, "label": label, "id": "x"} for image, label in pairs)
    image_set, expected = ImageSet.from_dataset(rows), ImageSet.from_dataset(pairs)
    assert torch.equal(image_set.images, expected.images)
    assert torch.equal(image_set.labels, expected.labels)
    assert image_set.classes == ("cat", "dog", "owl")
    with pytest.raises(TypeError, match=r"an image \(image or img\) and a label, got photo, kind"):
        ImageSet.from_dataset([{"photo": 0, "kind": 1}])


def test_a_part_of_a_set_keeps_the_names_of_the_whole():
    pairs = pictures("RGB", "RGB", "RGB")
    part = Subset(Subset(pairs, [0, 2]), [1])
    assert ImageSet.from_dataset(part).classes == ("cat", "dog", "owl")
    part.classes = ["tabby"]  # of its own
    assert ImageSet.from_dataset(part).classes == ("tabby",)


def test_pictures_are_turned_as_their_exif_says_grey_or_not(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("L", "RGB"):
        path = tmp_path / f"{mode}.jpg"
        Image.new(mode, (4, 3)).save(path, exif=exif)
        with Image.open(path) as image:
            assert ImageSet.from_dataset([(image, 0)]).image_size == (4, 3)
