from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fasttricks.data import load_data
from fasttricks.data._cache import cache_root


@pytest.fixture
def decoded(monkeypatch):
    """The paths that were decoded, in order."""
    from fasttricks.data import _folder

    paths, decode = [], _folder.decode_image

    def counting(path):
        paths.append(path)
        return decode(path)

    monkeypatch.setattr(_folder, "decode_image", counting)
    return paths


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def entries(cache):
    return sorted((cache / "decoded").iterdir())


def same(one, other):
    return all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and (a.classes, a.name) == (b.classes, b.name)
        for a, b in zip(one, other, strict=True)
    )


def test_a_second_start_decodes_nothing_and_gives_the_same(make_tree, cache, decoded):
    root, _ = make_tree()
    first = load_data(root, cache_dir=cache)
    count = len(decoded)
    second = load_data(root, cache_dir=cache)
    assert count > 0
    assert len(decoded) == count
    assert same(first, second)
    assert second[0].images.permute(0, 2, 3, 1).is_contiguous()


def test_the_archive_is_cached_as_well(make_batches, cache, monkeypatch):
    import tarfile

    root, _, _ = make_batches()
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    shutil.rmtree(root / "cifar-10-batches-py")
    first = load_data(root, cache_dir=cache)
    monkeypatch.setattr(tarfile, "open", None)
    assert same(first, load_data(root, cache_dir=cache))


def test_the_name_is_that_of_the_path_that_was_asked_for(make_tree, cache, decoded):
    root, _ = make_tree("pets")
    link = root.with_name("animals")
    link.symlink_to(root, target_is_directory=True)
    first = load_data(root, cache_dir=cache)
    count = len(decoded)
    by_link = load_data(link, cache_dir=cache)
    assert len(decoded) == count
    assert [each.name for each in (*first, *by_link)] == ["pets", "pets", "animals", "animals"]
    assert torch.equal(by_link[0].images, first[0].images)


def test_cifar_10_keeps_its_name_in_the_cache(make_batches, cache, monkeypatch):
    import tarfile

    from fasttricks.data import _cifar10

    root, _, _ = make_batches()
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    shutil.rmtree(root / "cifar-10-batches-py")
    monkeypatch.setattr(_cifar10, "is_cifar10", lambda train, test: True)
    for _ in range(2):
        train, test = load_data(root, cache_dir=cache)
        assert (train.name, test.name, train.classes) == ("CIFAR-10", "CIFAR-10", _cifar10.CLASSES)


def touch_later(path):
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def test_every_change_of_the_source_is_seen(make_tree, cache):
    root, _ = make_tree()
    load_data(root, cache_dir=cache)
    image = root / "train" / "cat" / "0.png"

    status = image.stat()
    Image.new("RGB", (7, 6), (1, 2, 3)).save(image)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert load_data(root, cache_dir=cache)[0].images[0, :, 0, 0].tolist() == [1, 2, 3]

    shutil.copy(image, image.with_name("00.png"))
    assert len(load_data(root, cache_dir=cache)[0]) == 7

    image.rename(image.with_name("9.png"))
    assert load_data(root, cache_dir=cache)[0].images[3, :, 0, 0].tolist() == [1, 2, 3]

    image.with_name("9.png").unlink()
    assert len(load_data(root, cache_dir=cache)[0]) == 6

    # neither the order of the files nor their sizes and times change
    for split in ("train", "test"):
        (root / split / "cat").rename(root / split / "bird")
    assert load_data(root, cache_dir=cache)[0].classes == ("bird", "dog")


def test_only_the_newest_state_of_a_source_is_kept(make_tree, cache):
    root, _ = make_tree("one")
    other, _ = make_tree("two")
    load_data(other, cache_dir=cache)
    for _ in range(3):
        load_data(root, cache_dir=cache)
        touch_later(root / "test" / "dog" / "3.png")
    assert len(entries(cache)) == 2
    assert all(".part-" not in path.name for path in entries(cache))


def test_what_a_killed_process_left_is_removed_once_it_is_old(make_tree, cache):
    root, _ = make_tree()
    load_data(root, cache_dir=cache)
    (entry,) = entries(cache)
    for name, age in ((".part-old", 7200), (".part-new", 0)):
        part = entry.with_name(entry.name + name)
        part.mkdir()
        os.utime(part, (part.stat().st_mtime - age,) * 2)
    touch_later(root / "test" / "dog" / "3.png")
    load_data(root, cache_dir=cache)
    names = [path.name for path in entries(cache)]
    assert [name for name in names if ".part-" in name] == [entry.name + ".part-new"]


def edit_json(entry, /, **changes):
    path = entry / "entry.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def save_object_array(path):
    class Trap:
        def __reduce__(self):
            return (exec, (f"open({str(path.parent / 'sprung')!r}, 'w')",))

    np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)


DAMAGES = {
    "images cut": lambda entry: os.truncate(entry / "train_images.npy", 200),
    "images empty": lambda entry: os.truncate(entry / "test_images.npy", 0),
    "a bit flipped": lambda entry: flip_last_byte(entry / "train_images.npy"),
    "a label flipped": lambda entry: flip_last_byte(entry / "test_labels.npy"),
    "a file gone": lambda entry: (entry / "test_labels.npy").unlink(),
    "json gone": lambda entry: (entry / "entry.json").unlink(),
    "json cut": lambda entry: os.truncate(entry / "entry.json", 20),
    "json of a list": lambda entry: (entry / "entry.json").write_text("[]"),
    "json not text": lambda entry: (entry / "entry.json").write_bytes(b"\xff\xfe\x00"),
    "json deep": lambda entry: (entry / "entry.json").write_text("[" * 100_000),
    "another format": lambda entry: edit_json(entry, format=2),
    "another entry's": lambda entry: edit_json(entry, entry="0-0"),
    "no crc": lambda entry: edit_json(entry, crc32={}),
    "crc of nothing": lambda entry: edit_json(entry, crc32=None),
    "classes lost": lambda entry: edit_json(entry, classes=["cat"]),
    "classes wrong": lambda entry: edit_json(entry, classes=3),
    "name wrong": lambda entry: edit_json(entry, name=None),
    "other shape": lambda entry: np.save(entry / "train_images.npy", np.zeros((2, 2), np.uint8)),
    "objects": lambda entry: save_object_array(entry / "train_labels.npy"),
    "empty folder": lambda entry: [path.unlink() for path in entry.iterdir()],
    "a folder in place of a file": lambda entry: [
        (entry / "train_images.npy").unlink(),
        (entry / "train_images.npy").mkdir(),
    ],
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_entry_is_rebuilt(make_tree, cache, decoded, damage):
    root, _ = make_tree()
    first = load_data(root, cache_dir=cache)
    (entry,) = entries(cache)
    DAMAGES[damage](entry)
    decoded.clear()
    assert same(first, load_data(root, cache_dir=cache))
    assert len(decoded) > 0
    decoded.clear()
    assert same(first, load_data(root, cache_dir=cache))
    assert decoded == []
    assert not (entry / "sprung").exists()


def test_no_file_of_the_cache_is_a_pickle(make_tree, cache):
    root, _ = make_tree()
    load_data(root, cache_dir=cache)
    (entry,) = entries(cache)
    for path in entry.iterdir():
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)
        else:
            json.loads(path.read_text())


def test_a_cache_that_cannot_be_written_is_a_warning(make_tree, cache, decoded):
    root, pixels = make_tree()
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot write the cache .*pass cache_dir"):
        train, _ = load_data(root, cache_dir=cache)
    assert torch.equal(train.images.permute(0, 2, 3, 1), torch.from_numpy(pixels["train"]))


def test_a_full_disk_leaves_nothing_half_written(make_tree, cache, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    root, _ = make_tree()
    monkeypatch.setattr(json, "dump", fail)
    with pytest.warns(UserWarning, match="No space left on device"):
        load_data(root, cache_dir=cache)
    assert entries(cache) == []


def test_a_process_that_is_faster_does_no_harm(make_tree, cache):
    root, _ = make_tree()
    inner = []

    def load_meanwhile(done, total, what):
        inner.append(load_data(root, cache_dir=cache))

    outer = load_data(root, cache_dir=cache, progress=load_meanwhile)
    assert same(outer, inner[0])
    assert same(outer, load_data(root, cache_dir=cache))
    assert len(entries(cache)) == 1


@pytest.mark.filterwarnings("ignore:cannot write the cache")
def test_loading_while_others_load_and_clear_the_cache_gives_the_data(make_tree, cache):
    root, _ = make_tree()
    results, barrier = [], threading.Barrier(4)

    def load_often(clear):
        barrier.wait()
        for _ in range(5):
            results.append(load_data(root, cache_dir=cache))
            if clear:
                shutil.rmtree(cache / "decoded", ignore_errors=True)

    threads = [threading.Thread(target=load_often, args=(clear,)) for clear in (True, False) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    assert all(same(results[0], other) for other in results)


def test_loading_at_once_leaves_one_entry_and_no_warning(make_tree, cache):
    root, _ = make_tree()
    barrier = threading.Barrier(4)
    failures = []

    def load():
        barrier.wait()
        try:
            load_data(root, cache_dir=cache)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(entries(cache)) == 1


def test_the_folder_is_the_argument_then_the_variable_then_the_xdg_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTTRICKS_CACHE", str(tmp_path / "variable"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root(tmp_path / "argument") == tmp_path / "argument"
    assert cache_root("~/there") == tmp_path / "home" / "there"
    assert cache_root() == tmp_path / "variable"
    monkeypatch.setenv("FASTTRICKS_CACHE", "")
    assert cache_root() == tmp_path / "xdg" / "fasttricks"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == Path.home() / ".cache" / "fasttricks"
