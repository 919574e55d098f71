from __future__ import annotations

import pytest
import torch

from fasttricks.transforms import (
    Cutout,
    Draws,
    Normalize,
    Pipeline,
    ProgressiveResize,
    RandomHorizontalFlip,
    RandomTranslate,
    Transform,
)

DRAWS = Draws(torch.arange(6), seed=1, epoch=2)
SHAPE = (6, 3, 12, 12)


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, SHAPE, dtype=torch.uint8, generator=generator)


def run(transform, draws=DRAWS):
    return transform.apply(images(), transform.sample(draws, SHAPE))


def test_a_pipeline_is_its_pieces_in_order_each_with_its_own_stream():
    pieces = [RandomTranslate(2), RandomHorizontalFlip(), Cutout(4)]
    expected = images()
    for stream, piece in enumerate(pieces):
        params = piece.sample(DRAWS.with_stream(stream), SHAPE)
        expected = piece.apply(expected, params)
    assert torch.equal(run(Pipeline(pieces)), expected)


def test_two_equal_pieces_draw_independently():
    draws = Draws(torch.arange(1000), seed=0)
    first, second = Pipeline([RandomHorizontalFlip()] * 2).sample(draws, (1000, 3, 12, 12))
    assert 400 < (first ^ second).sum() < 600


def test_a_nested_pipeline_is_the_same_as_its_pieces_written_out():
    a, b, c = RandomTranslate(2), RandomHorizontalFlip(), Cutout(4)
    flat = Pipeline([a, b, c])
    assert Pipeline([Pipeline([a, b]), c]) == flat
    assert Pipeline([a, Pipeline([b, Pipeline([c])])]) == flat
    assert torch.equal(run(Pipeline([a, Pipeline([b, c])])), run(flat))


def test_an_empty_pipeline_is_the_identity():
    assert torch.equal(run(Pipeline([])), images())


def test_pieces_after_a_resize_sample_for_the_new_size():
    pipeline = Pipeline([ProgressiveResize({0: 5}), Cutout(1), RandomTranslate(4)])
    _, boxes, _ = pipeline.sample(Draws(torch.arange(500), seed=0), (500, 3, 12, 12))
    assert boxes[..., 1].max() == 5
    assert pipeline.output_shape(SHAPE, pipeline.sample(DRAWS, SHAPE)) == (6, 3, 5, 5)
    with pytest.raises(ValueError, match="got padding=5 and images of 5x5"):
        Pipeline([ProgressiveResize({0: 5}), RandomTranslate(5)]).sample(DRAWS, SHAPE)


def test_calling_takes_its_randomness_from_the_generator_alone():
    pipeline = Pipeline([RandomTranslate(2), Cutout(4)])
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(results))
        results.append(pipeline(images(), generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_calling_without_a_generator_follows_manual_seed():
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(RandomTranslate(2)(images()))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_transform_needs_both_of_its_halves():
    class Half(Transform):
        def sample(self, draws, shape):
            return None

    with pytest.raises(TypeError, match="apply"):
        Half()


def test_a_list_of_different_transforms_is_one_of_transforms_to_a_type_checker():
    (params,) = Transform.__parameters__
    assert params.__covariant__


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([[0]], TypeError, "images must be a torch.Tensor, a PIL image.* got list"),
        (torch.zeros(4, 4), ValueError, r"\[C, H, W\] or \[N, C, H, W\], got shape=\(4, 4\)"),
        (torch.zeros(1, 1, 1, 4, 4), ValueError, r"got shape=\(1, 1, 1, 4, 4\)"),
        (torch.zeros(2, 3, 0, 4), ValueError, r"one channel, row and column, got shape=\(2, 3, 0"),
        (torch.zeros(3, 4, 4, dtype=torch.bool), TypeError, "got dtype=torch.bool"),
        (torch.zeros(3, 4, 4, dtype=torch.complex64), TypeError, "got dtype=torch.complex64"),
        (
            torch.zeros(3, 4, 4, dtype=torch.uint16),
            TypeError,
            "dtype of uint8, int8, int16, int32, int64, float16, bfloat16, float32, float64, "
            "got dtype=torch.uint16",
        ),
        (torch.zeros(3, 4, 4, dtype=torch.float8_e5m2), TypeError, "got dtype=torch.float8_e5m2"),
    ],
)
def test_what_is_not_a_batch_of_images_is_refused(bad, error, message):
    with pytest.raises(error, match=message):
        RandomHorizontalFlip()(bad)


def test_what_is_not_a_transform_is_named():
    with pytest.raises(TypeError, match=r"got transforms\[1\]=<function relu"):
        Pipeline([Cutout(2), torch.nn.functional.relu])
    with pytest.raises(TypeError, match=r"got transforms\[0\]=<class .*Normalize'>"):
        Pipeline([Normalize])
    with pytest.raises(TypeError, match=r"a list of Transform objects, got transforms=Cutout"):
        Pipeline(Cutout(2))
