from __future__ import annotations

import numpy as np
import pytest
import torch

from fasttricks.data import ImageSet, _device_loader
from fasttricks.data._device_loader import DeviceLoader
from fasttricks.transforms import (
    AlternatingFlip,
    CutMix,
    Cutout,
    Draws,
    Mixup,
    Normalize,
    Pipeline,
    ProgressiveResize,
    RandomErasing,
    RandomHorizontalFlip,
    RandomIntensity,
    RandomTranslate,
    Transform,
)

TRANSFORMS = [RandomTranslate(2), AlternatingFlip(), Normalize(0.5, 0.25), Cutout(4)]


def image_set(n=23, channels=3):
    """Image i carries its number in its label, and pixels that no other image has."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, channels, 8, 8), dtype=torch.uint8, generator=generator)
    names = tuple(str(i) for i in range(n))
    return ImageSet(pixels, torch.arange(n), classes=names, name="numbered")


def serve(loader):
    """One epoch: {label: image}, and the labels in order."""
    images, labels = zip(*loader, strict=True)
    labels = torch.cat(labels)
    return dict(zip(labels.tolist(), torch.cat(images), strict=True)), labels.tolist()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("batch_size", "sizes"), [(5, [5, 5, 5, 5, 3]), (23, [23]), (100, [23])])
def test_an_epoch_serves_every_image_once_and_the_rest_last(batch_size, sizes, shuffle):
    loader = DeviceLoader(image_set(), batch_size=batch_size, shuffle=shuffle)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == sizes
    assert len(loader) == len(sizes)
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == list(range(23))


def test_drop_last_leaves_out_the_short_batch_only():
    loader = DeviceLoader(image_set(), batch_size=5, drop_last=True)
    assert [len(labels) for _, labels in loader] == [5] * 4 == [5] * len(loader)
    assert len(DeviceLoader(image_set(20), batch_size=5, drop_last=True)) == 4
    assert len(DeviceLoader(image_set(5), batch_size=5, drop_last=True)) == 1


def test_images_and_labels_belong_together_and_keep_their_bytes_without_transforms():
    images, labels = serve(DeviceLoader(image_set(), batch_size=4, shuffle=True))
    for label, image in images.items():
        assert image.dtype == torch.uint8
        assert torch.equal(image, image_set().images[label])
    assert labels != sorted(labels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transforms", [(), TRANSFORMS, [ProgressiveResize({0: 5})]])
def test_batches_are_channels_last_and_labels_int64(transforms, channels):
    for images, labels in DeviceLoader(image_set(7, channels), batch_size=4, transforms=transforms):
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64


def test_an_image_is_the_same_whatever_the_batch_size_shuffle_and_drop_last():
    def epoch_2(**arguments):
        loader = DeviceLoader(image_set(), transforms=TRANSFORMS, seed=9, **arguments)
        loader.set_epoch(2)
        return serve(loader)[0]

    expected = epoch_2(batch_size=1)
    for batch_size in (2, 7, 23):
        for shuffle in (False, True):
            for drop_last in (False, True):
                served = epoch_2(batch_size=batch_size, shuffle=shuffle, drop_last=drop_last)
                for label, image in served.items():
                    assert torch.equal(image, expected[label])


def test_a_loader_goes_on_from_anothers_state_but_not_with_another_seed():
    first = DeviceLoader(image_set(), batch_size=6, shuffle=True, seed=4)
    first.set_epoch(3)
    second = DeviceLoader(image_set(), batch_size=6, shuffle=True, seed=4)
    second.load_state_dict(first.state_dict())
    for (images, labels), (others, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
    other = DeviceLoader(image_set(), batch_size=6, shuffle=True, seed=5)
    with pytest.raises(ValueError, match="seed must be that of the loader .* 4, got seed=5"):
        other.load_state_dict(first.state_dict())


class OfOnesOwn(RandomHorizontalFlip):
    """A transform whose repr says where it lies in memory."""

    __repr__ = object.__repr__


def change_pixel(data):
    data.images[5, 0, 0, 0] += 1


def change_label(data):
    data.labels[5] = (data.labels[5] + 1) % data.num_classes


@pytest.mark.parametrize("change", [change_pixel, change_label])
def test_a_loader_does_not_go_on_from_the_state_of_one_with_other_images(change):
    state = DeviceLoader(image_set(), batch_size=6).state_dict()
    data = image_set()
    change(data)
    loader = DeviceLoader(data, batch_size=6)
    loader.set_epoch(4)
    message = "images must be that of the loader .*, 23 of 3x.* with checksum .*, got images=23 of"
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict({**state, "epoch": 1})
    assert loader.epoch == 4


@pytest.mark.parametrize("changed", [{"batch_size": 7}, {"shuffle": True}, {"drop_last": True}])
def test_a_loader_does_not_go_on_from_the_state_of_one_with_other_batches(changed):
    state = DeviceLoader(image_set(), batch_size=6).state_dict()
    (name,) = changed
    with pytest.raises(ValueError, match=f"{name} must be that of the loader"):
        DeviceLoader(image_set(), **{"batch_size": 6, **changed}).load_state_dict(state)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (RandomErasing(p=1), RandomErasing(p=1.0)),
        (RandomIntensity(shift=np.float64(0.1)), RandomIntensity(shift=0.1)),
        (ProgressiveResize({0: np.int64(8)}), ProgressiveResize({0: 8})),
    ],
)
def test_equal_numbers_make_the_same_transform_whoever_made_them(one, other):
    state = DeviceLoader(image_set(), batch_size=6, transforms=[one]).state_dict()
    DeviceLoader(image_set(), batch_size=6, transforms=[other]).load_state_dict(state)


@pytest.mark.parametrize(
    "options",
    [{}, {"transforms": TRANSFORMS[:-1]}, {"transforms": TRANSFORMS, "mix": Mixup(0.4)}],
)
def test_a_loader_does_not_go_on_from_the_state_of_one_with_other_transforms(options):
    state = DeviceLoader(image_set(), batch_size=6, transforms=TRANSFORMS).state_dict()
    with pytest.raises(ValueError, match="transforms must be that of the loader"):
        DeviceLoader(image_set(), batch_size=6, **options).load_state_dict(state)


def test_a_transform_of_ones_own_is_known_by_its_class():
    states = [
        DeviceLoader(image_set(), batch_size=6, transforms=[OfOnesOwn()]).state_dict()
        for _ in range(2)
    ]
    assert states[0] == states[1]
    assert states[0]["transforms"] == [f"{__name__}.OfOnesOwn"]


def test_a_state_of_before_there_was_more_than_the_epoch_is_taken():
    loader = DeviceLoader(image_set(), batch_size=6, seed=4)
    loader.load_state_dict({"seed": 4, "epoch": 7})
    assert loader.epoch == 7


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({}, ValueError, "must hold seed and epoch, .* got state_dict={}"),
        ({"seed": 0}, ValueError, "got state_dict={'seed': 0}"),
        ([0, 1], TypeError, "state_dict must be a dict, got list"),
        ({"seed": 0, "epoch": 1.5}, TypeError, "epoch must be a whole number, got epoch=1.5"),
    ],
)
def test_what_is_no_loaders_state_is_named(state, error, message):
    loader = DeviceLoader(image_set(), batch_size=6)
    with pytest.raises(error, match=message):
        loader.load_state_dict(state)
    assert loader.epoch == 0


def test_a_device_that_torch_was_not_built_for_is_named(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("Torch not compiled with XPU enabled")

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(ValueError, match=r"got device='xpu' \(Torch not compiled with XPU enabled"):
        DeviceLoader(image_set(), batch_size=1, device="xpu")


def test_batches_are_the_pipeline_applied_to_the_images_by_their_index():
    loader = DeviceLoader(image_set(), batch_size=6, transforms=TRANSFORMS, shuffle=True, seed=4)
    loader.set_epoch(3)
    pipeline = Pipeline(TRANSFORMS)
    for images, labels in loader:
        draws = Draws(labels, seed=4, epoch=3)
        params = pipeline.sample(draws, (len(labels), 3, 8, 8))
        assert torch.equal(images, pipeline.apply(image_set().images[labels], params))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("batch_size", "drawn_at_once"), [(5, 2**14), (5, 12), (4, 1), (23, 1)])
@pytest.mark.parametrize("rest", [[], [RandomIntensity(), ProgressiveResize({1: 5})]])
def test_the_fused_pass_serves_the_same_bits(
    rest, batch_size, drawn_at_once, drop_last, monkeypatch
):
    monkeypatch.setattr(_device_loader, "_DRAWN_AT_ONCE", drawn_at_once)
    settings = {"batch_size": batch_size, "drop_last": drop_last, "seed": 5, "shuffle": True}
    fused, plain = (
        DeviceLoader(image_set(), transforms=TRANSFORMS + rest, fused=fused, **settings)
        for fused in (True, False)
    )
    for _ in range(3):
        for (images, labels), (expected, same) in zip(fused, plain, strict=True):
            assert torch.equal(images.view(torch.int32), expected.view(torch.int32))
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(labels, same)


def test_a_transform_of_ones_own_samples_for_each_batch():
    class Crop(Transform):
        """Crops each batch to a side that its first image's draw chooses."""

        def sample(self, draws, shape):
            sampled.append(len(draws))
            return int(draws.integers(2, 9, 1)[0]) if len(draws) else 8

        def apply(self, images, params):
            return images[..., :params, :params]

    sampled = []
    pieces = [*TRANSFORMS, Crop(), RandomIntensity()]
    loader = DeviceLoader(image_set(), batch_size=5, transforms=pieces, seed=2)
    assert loader.last_batch_size == 3
    batches = list(loader)
    assert sampled == [0, 5, 5, 5, 5, 3]
    assert len({images.shape[-1] for images, _ in batches}) > 1  # not the 8 that it says it leaves
    pipeline = Pipeline(pieces)
    for images, labels in batches:
        params = pipeline.sample(Draws(labels, seed=2), (len(labels), 3, 8, 8))
        assert torch.equal(images, pipeline.apply(image_set().images[labels], params))


def test_epochs_advance_and_each_has_its_own_order_and_augmentation():
    loader = DeviceLoader(image_set(), batch_size=5, transforms=TRANSFORMS, shuffle=True)
    orders, views = [], []
    for epoch in range(4):
        assert loader.epoch == epoch
        images, order = serve(loader)
        orders.append(tuple(order))
        views.append(images[0])
    assert len(set(orders)) == 4
    assert not any(torch.equal(views[0], other) for other in views[1:])


def test_an_epoch_is_a_pure_function_of_seed_and_epoch():
    def served(seed, epoch, warm_up):
        loader = DeviceLoader(
            image_set(), batch_size=5, transforms=TRANSFORMS, shuffle=True, seed=seed
        )
        for _ in range(warm_up):
            serve(loader)
            torch.rand(3)
        loader.set_epoch(epoch)
        return serve(loader)

    images, order = served(1, 3, warm_up=0)
    again, order_again = served(1, 3, warm_up=2)
    assert order == order_again
    assert all(torch.equal(images[i], again[i]) for i in images)
    assert served(2, 3, warm_up=0)[1] != order
    assert served(1, 4, warm_up=0)[1] != order


def test_every_place_in_the_order_is_equally_likely():
    loader = DeviceLoader(image_set(10), batch_size=10, shuffle=True)
    counts = torch.zeros(10, 10)
    for _ in range(600):
        (_, labels), *_ = loader
        counts[torch.arange(10), labels] += 1
    chi2 = float(((counts - 60) ** 2 / 60).sum())
    # 81 free cells: standard deviation sqrt(162)
    assert abs(chi2 - 81) < 4 * 162**0.5


def test_images_mirror_from_epoch_to_epoch_with_alternating_flip():
    loader = DeviceLoader(image_set(), batch_size=4, transforms=[AlternatingFlip()], shuffle=True)
    (first, _), (second, _), (third, _) = (serve(loader) for _ in range(3))
    for label, image in first.items():
        assert torch.equal(second[label], image.flip(2))
        assert torch.equal(third[label], image)


@pytest.mark.parametrize("fused", [False, True])
def test_the_default_device_does_not_matter(fused):
    def epoch():
        return list(DeviceLoader(numbered, batch_size=5, transforms=transforms, **options))

    transforms = [RandomTranslate(2), Cutout(2, fill=9), Normalize(0.5, 0.25), Cutout(4)]
    options = {"shuffle": True, "fused": fused, "seed": 3}
    numbered = image_set()
    expected = epoch()
    with torch.device("meta"):
        served = epoch()
    for (images, labels), (others, other_labels) in zip(served, expected, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_sizes_follow_the_epoch_with_progressive_resize():
    resize = ProgressiveResize({0: 4, 2: None})
    loader = DeviceLoader(image_set(), batch_size=23, transforms=[resize])
    sides = []
    for _ in range(3):
        ((images, _),) = loader
        sides.append(images.shape[3])
    assert sides == [4, 4, 8]


def test_size_starts_are_those_of_all_resizes():
    pieces = [ProgressiveResize({4: 4, 0: 6}), Pipeline([ProgressiveResize({4: 5, 2: None})])]
    assert DeviceLoader(image_set(), batch_size=4, transforms=pieces).size_starts == (0, 2, 4)
    assert DeviceLoader(image_set(), batch_size=4).size_starts == ()


@pytest.mark.parametrize("mix", [None, CutMix(1.0)])
def test_a_transform_that_refuses_a_later_size_is_named_before_the_first_epoch(mix):
    pieces = [ProgressiveResize({0: 6, 3: 4, 5: None}), RandomTranslate(4)]
    with pytest.raises(ValueError, match="padding=4 and images of 4x4"):
        DeviceLoader(image_set(), batch_size=4, transforms=pieces, mix=mix)


def test_a_broken_off_epoch_is_served_again():
    loader = DeviceLoader(image_set(), batch_size=5, shuffle=True)
    iterator = iter(loader)
    first = next(iterator)[1]
    iterator.close()
    assert loader.epoch == 0
    assert torch.equal(next(iter(loader))[1], first)


def test_an_epoch_set_from_within_the_loop_stands():
    loader = DeviceLoader(image_set(), batch_size=5)
    for _ in loader:
        loader.set_epoch(7)
    assert loader.epoch == 7


def test_changing_a_batch_in_place_does_not_reach_the_stored_images():
    loader = DeviceLoader(image_set(), batch_size=23)
    for images, labels in loader:
        images.zero_()
        labels.zero_()
    images, _ = serve(loader)
    assert len(images) == 23
    assert torch.equal(images[3], image_set().images[3])


def test_the_global_generator_is_not_touched():
    state = torch.get_rng_state()
    serve(DeviceLoader(image_set(), batch_size=5, transforms=TRANSFORMS, shuffle=True))
    assert torch.equal(state, torch.get_rng_state())


def test_numbers_of_numpy_are_kept_as_ints():
    numbers = {"batch_size": 6, "seed": 200, "rank": 1, "world_size": 2}
    plain = DeviceLoader(image_set(24), transforms=TRANSFORMS, shuffle=True, **numbers)
    given = {name: np.uint8(value) for name, value in numbers.items()}
    loader = DeviceLoader(image_set(24), transforms=TRANSFORMS, shuffle=True, **given)
    for each in (plain, loader):
        each.set_epoch(np.uint8(255))
    for (images, labels), (expected, same) in zip(loader, plain, strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, same)
    assert (loader.epoch, loader.last_batch_size) == (256, 3)
    kept = {name: getattr(loader, name) for name in numbers} | loader.state_dict()
    assert {type(kept[name]) for name in (*numbers, "epoch")} == {int}


def bad(error, message, **arguments):
    label = next(iter(arguments), "nothing")
    return pytest.param(arguments, error, message, id=f"{label}: {message[:30]}")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        bad(ValueError, "batch_size must be at least 1, got batch_size=0", batch_size=0),
        bad(TypeError, "batch_size must be a whole number, got batch_size=2.0", batch_size=2.0),
        bad(
            ValueError,
            "got batch_size=24 and 23 images; use drop_last=False",
            batch_size=24,
            drop_last=True,
        ),
        bad(TypeError, "shuffle must be True or False, got shuffle=1", shuffle=1),
        bad(TypeError, r"got transforms\[1\]=<built-in", transforms=[Cutout(2), torch.relu]),
        bad(TypeError, "list of Transform objects, got transforms=Cutout", transforms=Cutout(2)),
        bad(ValueError, "seed must be at least 0, got seed=-1", seed=-1),
        bad(ValueError, "padding=8 and images of 8x8", transforms=[RandomTranslate(8)]),
        bad(ValueError, "2 numbers and images of 3", transforms=[Normalize((0, 0), 1)]),
        bad(ValueError, "for torch.uint8 images, got fill=0.5", transforms=[Cutout(2, fill=0.5)]),
        bad(TypeError, "fused must be True, False or None, got fused='yes'", fused="yes"),
        bad(ValueError, "fused=True is not possible: the transforms do not", fused=True),
        bad(ValueError, "device such as 'cpu' or 'cuda', got device='gpu'", device="gpu"),
        bad(ValueError, "one that this machine has, got device='vulkan' (.+)", device="vulkan"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        DeviceLoader(image_set(), **({"batch_size": 4} | arguments))


def test_other_data_sets_and_negative_epochs_are_refused():
    with pytest.raises(TypeError, match="image_set must be an ImageSet, got list"):
        DeviceLoader([1, 2], batch_size=1)
    loader = DeviceLoader(image_set(), batch_size=1)
    with pytest.raises(ValueError, match="epoch must be at least 0, got epoch=-1"):
        loader.set_epoch(-1)


def test_a_missing_cuda_device_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="got device='cuda' but CUDA is not available"):
        DeviceLoader(image_set(), batch_size=1, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="got device='cuda:3' but there are 1 CUDA devices"):
        DeviceLoader(image_set(), batch_size=1, device="cuda:3")


@pytest.mark.cuda
def test_order_and_images_are_the_same_on_cuda():
    def served(device):
        loader = DeviceLoader(
            image_set(), batch_size=5, transforms=TRANSFORMS, shuffle=True, device=device
        )
        return serve(loader)

    (here, order), (there, order_there) = served("cpu"), served("cuda")
    assert order == order_there
    for label, image in here.items():
        torch.testing.assert_close(there[label].cpu(), image)


def test_an_epoch_is_over_with_its_last_batch_whoever_asks_for_no_more():
    loader = DeviceLoader(image_set(6), batch_size=2, shuffle=True)
    orders = []
    for _ in range(2):
        orders.append([labels.tolist() for _, (_, labels) in zip(range(3), loader, strict=False)])
    assert loader.epoch == 2
    assert orders[0] != orders[1]
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    assert loader.epoch == 2
    next(batches)
    assert loader.epoch == 3
    assert list(batches) == []
    assert loader.epoch == 3
