from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fasttricks.data import DataError, load_data


@pytest.fixture
def load(tmp_path):
    return lambda root, **options: load_data(root, cache_dir=tmp_path / "cache", **options)


def save(path, *, size=(7, 6), color=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_tree_comes_back_bit_for_bit(make_tree, load):
    root, pixels = make_tree("pets")
    for split, image_set in zip(("train", "test"), load(root), strict=True):
        expected = torch.from_numpy(pixels[split]).permute(0, 3, 1, 2)
        assert torch.equal(image_set.images, expected)
        assert image_set.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert image_set.classes == ("cat", "dog")
        assert image_set.name == "pets"


def test_the_default_device_does_not_matter(make_tree, load):
    root, _ = make_tree("pets")
    with torch.device("meta"):
        train, _ = load(root)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_val_serves_as_test_set_when_there_is_no_test_folder(make_tree, load):
    root, pixels = make_tree()
    (root / "test").rename(root / "val")
    assert torch.equal(load(root)[1].images.permute(0, 2, 3, 1), torch.from_numpy(pixels["test"]))


def test_hidden_and_foreign_files_are_ignored(make_tree, load):
    root, _ = make_tree()
    save(root / "train" / ".ipynb_checkpoints" / "0-checkpoint.png")
    save(root / "train" / "cat" / ".thumbs" / "0.png")
    save(root / "train" / "cat" / "._0.png")
    for name in ("train/.DS_Store", "train/cat/.DS_Store", "train/cat/notes.txt", "train/list.csv"):
        (root / name).write_text("no image")
    train, _ = load(root)
    assert (len(train), train.classes) == (6, ("cat", "dog"))


def test_folders_inside_a_class_belong_to_it(make_tree, load):
    root, _ = make_tree()
    save(root / "train" / "dog" / "more" / "yet" / "x.PNG")
    assert load(root)[0].labels.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_loop_of_links_ends_and_counts_no_image_twice(make_tree, load):
    root, _ = make_tree()
    (root / "train" / "cat" / "again").symlink_to(root / "train" / "cat")
    (root / "train" / "dog" / "up").symlink_to("..")
    (root / "train" / "cat" / "self").symlink_to("self")
    labels = load(root)[0].labels.tolist()
    assert labels.count(0) == 3  # the other class was told to take everything above it as well
    assert labels.count(1) == 6


def test_linked_class_folders_are_followed(make_tree, load, tmp_path):
    root, _ = make_tree()
    (root / "train" / "cat").rename(tmp_path / "elsewhere")
    (root / "train" / "cat").symlink_to(tmp_path / "elsewhere")
    assert len(load(root)[0]) == 6


@pytest.mark.parametrize("target", ["gone.png", "x.png"])
def test_broken_links_are_named(make_tree, load, target):
    root, _ = make_tree()
    (root / "train" / "cat" / "x.png").symlink_to(target)
    with pytest.raises(DataError, match=r"cannot read .*train/cat/x\.png"):
        load(root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_hang(make_tree, load):
    root, _ = make_tree()
    os.mkfifo(root / "train" / "cat" / "x.png")
    with pytest.raises(DataError, match=r"x\.png is not a regular file"):
        load(root)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("train", "no train folder in .*tree: expected"),
        ("test", "no test folder in .*tree: expected"),
        ("train/cat", "class 'cat' is in .*test but not in .*train"),
        ("test/dog", "class 'dog' is in .*train but not in .*test"),
    ],
)
def test_missing_folders_are_named(make_tree, load, gone, message):
    root, _ = make_tree()
    shutil.rmtree(root / gone)
    with pytest.raises(DataError, match=message):
        load(root)


def test_a_class_without_images_is_named(make_tree, load):
    root, _ = make_tree()
    for image in (root / "test" / "dog").iterdir():
        image.unlink()
    with pytest.raises(DataError, match=r"no images in .*test/dog: add images \(.png .jpg"):
        load(root)


def test_a_split_without_class_folders_is_named(make_tree, load):
    root, _ = make_tree()
    shutil.rmtree(root / "train")
    save(root / "train" / "0.png")
    with pytest.raises(DataError, match=r"no class folders in .*train"):
        load(root)


@pytest.mark.parametrize("odd", ["train/cat/1.png", "test/dog/5.png"])
def test_images_of_two_sizes_are_both_named(make_tree, load, odd):
    root, _ = make_tree()
    save(root / odd, size=(9, 8))
    with pytest.raises(DataError, match=rf"got 7x6 in .*train/cat/0\.png and 9x8 in .*{odd}"):
        load(root)


def test_a_corrupt_image_is_named(make_tree, load):
    root, _ = make_tree()
    path = root / "train" / "dog" / "4.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"cannot decode the image .*train/dog/4\.png") as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_progress_counts_to_the_number_of_images(make_tree, load, monkeypatch):
    monkeypatch.setattr("fasttricks.data._progress._EVERY", 5)
    root, _ = make_tree()
    calls = []
    load(root, progress=lambda *call: calls.append(call))
    assert calls == [(done, 12, "decoding images") for done in (5, 10, 12)]


def test_jpeg_and_webp_are_read_as_pillow_reads_them(tmp_path, load):
    root = tmp_path / "mixed"
    image = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    for split in ("train", "test"):
        (root / split / "a").mkdir(parents=True)
        for suffix in ("bmp", "jpeg", "jpg", "png", "webp"):
            image.save(root / split / "a" / f"x.{suffix}")
    train, _ = load(root)
    for path, stored in zip(sorted((root / "train" / "a").iterdir()), train.images, strict=True):
        with Image.open(path) as opened:
            expected = np.asarray(opened.convert("RGB"))
        assert torch.equal(stored.permute(1, 2, 0), torch.from_numpy(expected.copy()))


@pytest.mark.parametrize("suffix", ["ppm", "pgm", "tif", "TIFF"])
def test_files_of_other_formats_belong_to_the_class_too(make_tree, load, suffix):
    root, _ = make_tree()
    image = Image.new("L" if suffix == "pgm" else "RGB", (7, 6), 7)
    image.save(root / "train" / "dog" / f"x.{suffix}")
    assert load(root)[0].labels.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_val_serves_where_the_test_images_have_no_class_folders(make_tree, load):
    root, pixels = make_tree()
    (root / "test").rename(root / "val")
    save(root / "test" / "0.png")
    assert torch.equal(load(root)[1].images.permute(0, 2, 3, 1), torch.from_numpy(pixels["test"]))
