"""One battery for every exported transform; a new one without an example here fails."""

from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttricks import transforms
from fasttricks.transforms import (
    AlternatingFlip,
    Cutout,
    Draws,
    Normalize,
    Pipeline,
    ProgressiveResize,
    RandomErasing,
    RandomHorizontalFlip,
    RandomIntensity,
    RandomTranslate,
    Transform,
)

EXAMPLES = {
    AlternatingFlip: [AlternatingFlip()],
    Cutout: [
        Cutout(3),
        Cutout((2, 4), holes=2, inside=True),
        Cutout(20, fill="mean", p=0.5),
        Cutout(2, fill=(1, 2, 3)),
    ],
    Normalize: [Normalize((0.5, 0.4, 0.3), 0.25), Normalize(0.5, 0.25, torch.bfloat16)],
    Pipeline: [
        Pipeline([]),
        Pipeline([RandomTranslate(2), AlternatingFlip(), Normalize(0.5, 0.25), Cutout(3)]),
        Pipeline([ProgressiveResize({0: 5}), Cutout(2), RandomHorizontalFlip()]),
    ],
    ProgressiveResize: [ProgressiveResize({0: 5, 2: 9}), ProgressiveResize({1: 4})],
    RandomErasing: [RandomErasing(p=1.0), RandomErasing(p=0.5, fill="random")],
    RandomIntensity: [RandomIntensity(), RandomIntensity(shift=0.5, scale=0)],
    RandomHorizontalFlip: [RandomHorizontalFlip(), RandomHorizontalFlip(p=1.0)],
    RandomTranslate: [RandomTranslate(2), RandomTranslate(0), RandomTranslate(9, "zero")],
}
CONVERTS = (Normalize, Pipeline)  # what may change the dtype
RESIZES = (ProgressiveResize, Pipeline)
ALL = [pytest.param(each, id=repr(each)) for many in EXAMPLES.values() for each in many]
DTYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
LAYOUTS = ["nchw", "channels_last", "zero stride", "every other row", "cropped channels_last"]


def exported_transforms():
    exported = (getattr(transforms, name) for name in transforms.__all__)
    return {
        each
        for each in exported
        if inspect.isclass(each) and issubclass(each, Transform) and each is not Transform
    }


def make(layout, dtype, n=4):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 8, 7), generator=generator).to(dtype)
    if layout == "channels_last":
        return images.contiguous(memory_format=torch.channels_last)
    if layout == "zero stride":
        return images[:1].expand(n, 3, 8, 7)
    if layout == "every other row":
        return images.repeat_interleave(2, dim=2)[:, :, ::2]
    if layout == "cropped channels_last":
        bigger = torch.nn.functional.pad(images, (1, 1, 1, 1))
        return bigger.contiguous(memory_format=torch.channels_last)[:, :, 1:-1, 1:-1]
    return images


def draws(n=4, epoch=0):
    return Draws(torch.arange(n), seed=7, epoch=epoch)


def run(transform, images, counter=None):
    counter = draws(len(images)) if counter is None else counter
    return transform.apply(images, transform.sample(counter, tuple(images.shape)))


def test_every_exported_transform_has_an_example():
    assert exported_transforms() == set(EXAMPLES)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("transform", ALL)
def test_the_input_stays_as_it_is(transform, layout):
    for dtype in (torch.uint8, torch.float32):
        images = make(layout, dtype)
        before, version = images.clone(), images._version
        run(transform, images)
        assert torch.equal(images, before)
        assert images._version == version


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transform", ALL)
def test_dtype_device_and_shape_are_kept_unless_changing_them_is_the_purpose(transform, dtype):
    images = make("channels_last", dtype)
    result = run(transform, images)
    assert result.device == images.device
    if not isinstance(transform, CONVERTS):
        assert result.dtype == dtype
    if not isinstance(transform, RESIZES):
        assert result.shape == images.shape
    params = transform.sample(draws(), tuple(images.shape))
    assert tuple(result.shape) == tuple(transform.output_shape(tuple(images.shape), params))


@pytest.mark.parametrize("transform", ALL)
def test_the_memory_format_is_kept(transform):
    for dtype in (torch.uint8, torch.float32):
        assert run(transform, make("nchw", dtype)).is_contiguous()
        result = run(transform, make("channels_last", dtype))
        assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("transform", ALL)
def test_the_layout_in_memory_does_not_change_the_result(transform, layout):
    for dtype in DTYPES:
        images = make(layout, dtype)
        expected = run(transform, images.clone(memory_format=torch.contiguous_format))
        assert torch.equal(run(transform, images), expected)


@pytest.mark.parametrize("transform", ALL)
def test_the_same_draws_give_the_same_result(transform):
    images = make("channels_last", torch.uint8)
    for epoch in (0, 1, 2):
        first, second = (run(transform, images, draws(epoch=epoch)) for _ in range(2))
        assert torch.equal(first, second)


@pytest.mark.parametrize("transform", ALL)
def test_the_default_device_does_not_matter(transform):
    images, generator = make("channels_last", torch.uint8), torch.Generator()
    expected = transform(images, generator=generator.manual_seed(3))
    with torch.device("meta"):
        result = transform(images, generator=generator.manual_seed(3))
    assert torch.equal(result, expected)


@settings(max_examples=10)
@given(data=st.data())
@pytest.mark.parametrize("transform", ALL)
def test_each_image_is_transformed_as_if_alone(transform, data):
    images = make("channels_last", torch.uint8, n=6)
    order = torch.tensor(data.draw(st.permutations(range(6))))
    epoch = data.draw(st.integers(0, 3))
    size = data.draw(st.integers(1, 6))
    whole = run(transform, images, draws(6, epoch))
    for index in order.split(size):
        part = run(transform, images[index], Draws(index, seed=7, epoch=epoch))
        assert torch.equal(part, whole[index])


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("transform", ALL)
def test_one_image_equals_a_batch_of_one(transform, layout):
    images = make(layout, torch.uint8, n=1)
    alone = transform(images[0], generator=torch.Generator().manual_seed(3))
    batch = transform(images, generator=torch.Generator().manual_seed(3))
    assert alone.dim() == 3
    assert torch.equal(alone, batch[0])


@pytest.mark.parametrize("transform", ALL)
def test_an_empty_batch_gives_an_empty_batch(transform):
    for dtype in (torch.uint8, torch.float32):
        for layout in ("nchw", "channels_last"):
            images = make(layout, dtype, n=0)
            result = transform(images)
            assert result.shape[:2] == (0, 3)
            assert result.dtype == run(transform, make(layout, dtype, n=1)).dtype
            assert result.shape[2:] == run(transform, make(layout, dtype, n=1)).shape[2:]


@pytest.mark.parametrize("transform", ALL)
def test_equal_arguments_make_equal_transforms_with_a_readable_repr(transform):
    assert type(transform).__name__ in repr(transform)
    twin = eval(repr(transform), vars(transforms) | {"torch": torch})
    assert twin == transform


@pytest.mark.cuda
@pytest.mark.parametrize("transform", ALL)
def test_the_result_is_the_same_on_cuda(transform):
    for dtype in (torch.uint8, torch.float32):
        images = make("channels_last", dtype)
        counter = Draws(torch.arange(4, device="cuda"), seed=7)
        there = run(transform, images.cuda(), counter)
        assert there.is_cuda
        # means and bilinear weights are summed in another order there
        halfway = dtype == torch.uint8 and isinstance(transform, ProgressiveResize)
        tolerance = {"atol": 1.0 if halfway else 1e-4, "rtol": 1e-5}
        torch.testing.assert_close(there.cpu(), run(transform, images), **tolerance)


def test_the_battery_sees_a_transform_that_changes_its_input():
    class Careless(RandomTranslate):
        def apply(self, images, params):
            return images.zero_()

    with pytest.raises(AssertionError):
        test_the_input_stays_as_it_is(Careless(2), "nchw")
