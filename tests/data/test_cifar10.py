from __future__ import annotations

import io
import pickle
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from fasttricks.data import DataError, ImageSet, load_data
from fasttricks.data import _cifar10 as cifar10

ARCHIVE = "cifar-10-python.tar.gz"


@pytest.fixture
def load(tmp_path):
    return lambda root, **options: load_data(root, cache_dir=tmp_path / "cache", **options)


def add_files(archive, files):
    for name, content in files:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def pack(root, *, prefix="cifar-10-batches-py/", extra=()):
    """Put the batches into an archive beside them, strangers around them, and remove them."""
    with tarfile.open(root / ARCHIVE, "w:gz") as archive:
        add_files(archive, extra)
        for path in sorted((root / "cifar-10-batches-py").iterdir()):
            archive.add(path, prefix + path.name)
        add_files(archive, extra)
    shutil.rmtree(root / "cifar-10-batches-py")
    return root


def assert_is(pair, pixels, labels, name):
    train, test = pair
    assert torch.equal(train.images, torch.from_numpy(pixels["train"]))
    assert torch.equal(test.images, torch.from_numpy(pixels["test"]))
    assert train.labels.tolist() + test.labels.tolist() == labels
    assert train.classes == test.classes == tuple(f"class {index}" for index in range(10))
    assert train.name == test.name == name
    assert train.images.permute(0, 2, 3, 1).is_contiguous()


@pytest.mark.parametrize("protocol", [2, 4])
def test_folder_comes_back_bit_for_bit(make_batches, load, protocol):
    root, pixels, labels = make_batches("little", protocol=protocol)
    assert_is(load(root), pixels, labels, "little")


def test_the_inner_folder_may_be_named_itself(make_batches, load):
    root, pixels, labels = make_batches("little")
    folder = root / "cifar-10-batches-py"
    assert_is(load(folder), pixels, labels, "cifar-10-batches-py")


@pytest.mark.parametrize("prefix", ["cifar-10-batches-py/", "./cifar-10-batches-py/"])
def test_folder_with_only_the_archive_comes_back_bit_for_bit(make_batches, load, prefix):
    root, pixels, labels = make_batches("little")
    assert_is(load(pack(root, prefix=prefix)), pixels, labels, "little")


def test_the_archive_may_be_named_itself(make_batches, load):
    root, pixels, labels = make_batches()
    assert_is(load(pack(root) / ARCHIVE), pixels, labels, "cifar-10-python")


def test_the_archive_is_read_in_memory_and_only_its_batches(make_batches, load, tmp_path):
    root, pixels, labels = make_batches("little")
    outside = ("../escaped", "/tmp/escaped", "other/data_batch_1", "data_batch_1")
    pack(root, extra=[(name, b"hostile") for name in outside])
    before = sorted(tmp_path.rglob("*"))
    assert_is(load(root), pixels, labels, "little")
    new = set(tmp_path.rglob("*")) - set(before)
    assert all((tmp_path / "cache") in (path, *path.parents) for path in new)


def test_both_ways_agree_with_torchvision(make_batches, load, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    root, _, _ = make_batches()
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)
    for image_set, train in zip(load(root), (True, False), strict=True):
        reference = datasets.CIFAR10(str(root), train=train)
        assert np.array_equal(image_set.images.permute(0, 2, 3, 1).numpy(), reference.data)
        assert image_set.labels.tolist() == reference.targets


def rewrite(root, batch, **changes):
    path = root / "cifar-10-batches-py" / batch
    entries = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps({**entries, **changes}, protocol=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.zeros((3, 10), np.uint8)}, r"shape \[N, 3072\], got \[3, 10\]"),
        ({"data": np.zeros((0, 3072), np.uint8)}, r"is not a batch of CIFAR-10"),
        ({"data": np.zeros((3, 3072))}, "must be a uint8 array"),
        ({"labels": [0, 1]}, "got 3 images and 2 labels"),
        ({"labels": [0, 1, 10]}, "between 0 and 9, got 10"),
        ({"labels": [0, -1, 1]}, "between 0 and 9, got -1"),
        ({"labels": [0, 1.5, 1]}, "list of whole numbers"),
        ({"labels": None}, "list of whole numbers"),
    ],
)
def test_wrong_batches_are_named(make_batches, load, changes, message):
    root, _, _ = make_batches()
    rewrite(root, "data_batch_3", **changes)
    with pytest.raises(DataError, match=message) as caught:
        load(root)
    assert "data_batch_3 in " in str(caught.value)


def test_a_missing_batch_is_named(make_batches, load):
    root, _, _ = make_batches()
    (root / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(DataError, match=r"data_batch_4 missing in .*cifar-10-batches-py"):
        load(root)


def test_a_batch_missing_in_the_archive_is_named(make_batches, load):
    root, _, _ = make_batches()
    (root / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(DataError, match=r"missing: test_batch; download it again"):
        load(pack(root))


@pytest.mark.parametrize("keep", [0, 10, -100])
def test_a_damaged_archive_is_named(make_batches, load, keep):
    root, _, _ = make_batches()
    archive = pack(root) / ARCHIVE
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is damaged .*download it again"):
        load(root)


def test_a_hostile_batch_runs_nothing(make_batches, load, tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",))

    root, _, _ = make_batches()
    (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps({"data": Trap()}))
    with pytest.raises(DataError, match=r"data_batch_2 in .* asks for builtins\.exec"):
        load(root)
    assert not (tmp_path / "sprung").exists()


def test_without_the_meta_file_the_classes_are_numbers(make_batches, load):
    root, _, _ = make_batches()
    (root / "cifar-10-batches-py" / "batches.meta").unlink()
    assert load(root)[0].classes == tuple("0123456789")


@pytest.mark.parametrize("names", [None, [], ["a", "a"], [1, 2], "ab"])
def test_a_meta_file_without_class_names_is_named(make_batches, load, names):
    root, _, _ = make_batches()
    meta = root / "cifar-10-batches-py" / "batches.meta"
    meta.write_bytes(pickle.dumps({"label_names": names}))
    with pytest.raises(DataError, match=r"batches\.meta in .* must hold a list label_names"):
        load(root)


def small_set():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(20) % 10, tuple("0123456789"), "some name")


def test_fingerprint_ignores_the_order_of_the_images():
    whole = small_set()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert cifar10.fingerprint(whole.subset(order)) == cifar10.fingerprint(whole)


def test_fingerprint_notices_a_pixel_a_label_and_a_flip():
    whole = small_set()
    pixel = whole.images.clone()
    pixel[3, 1, 2, 2] ^= 1
    flipped = whole.images.flip(3)
    swapped = whole.labels[[1, 0, *range(2, 20)]]
    others = [replace(whole, images=pixel), replace(whole, images=flipped)]
    others += [replace(whole, labels=swapped)]
    assert cifar10.fingerprint(whole) not in [cifar10.fingerprint(other) for other in others]


def test_the_name_is_given_to_the_real_content_only(monkeypatch):
    pair = small_set(), small_set()
    assert cifar10.with_canonical_name(pair) is pair
    zeros = [
        ImageSet(
            torch.zeros(1, 3, 32, 32, dtype=torch.uint8).expand(number, -1, -1, -1),
            labels,
            tuple("0123456789"),
            "x",
        )
        for number, labels in (
            (50_000, torch.zeros(50_000).long()),
            (10_000, torch.zeros(10_000).long()),
        )
    ]
    assert not cifar10.is_cifar10(*zeros)
    prints = tuple(cifar10.fingerprint(image_set) for image_set in zeros)
    monkeypatch.setattr(cifar10, "_FINGERPRINTS", prints)
    train, test = cifar10.with_canonical_name((zeros[0], zeros[1]))
    assert (train.name, test.name) == ("CIFAR-10", "CIFAR-10")
    assert train.classes == test.classes == cifar10.CLASSES
