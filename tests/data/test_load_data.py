from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest

from fasttricks.data import DataError, DataNotFoundError, load_data


def save_npz(path):
    x, y = np.zeros((2, 4, 4, 3), dtype=np.uint8), np.array([0, 1])
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)


@pytest.mark.parametrize("path", ["nowhere", "no/where.npz", ""])
def test_a_path_that_does_not_exist_is_named(path):
    with pytest.raises(DataNotFoundError, match=f"^data path does not exist: {path}$") as caught:
        load_data(path)
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, DataError)


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"must be a folder, an \.npz or .*got .*data\.csv"):
        load_data(tmp_path / "data.csv")


def test_a_folder_of_something_else_is_named(tmp_path):
    with pytest.raises(DataError, match=f"no data set in {tmp_path}: expected train/<class>/"):
        load_data(tmp_path)


@pytest.mark.parametrize("path", [3, b"bytes", ["a"]])
def test_what_is_no_path_is_a_type_error(path):
    with pytest.raises(TypeError, match="path must be a str or a path"):
        load_data(path)


def test_strings_home_and_relative_paths_are_understood(tmp_path, monkeypatch):
    save_npz(tmp_path / "Things.NPZ")
    shutil.move(tmp_path / "Things.NPZ.npz", tmp_path / "things.npz")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_data(str(tmp_path / "things.npz"))[0].name == "things"
    assert load_data("~/things.npz")[0].name == "things"


@pytest.mark.parametrize("suffix", [".npz", ".NPZ", ".Npz"])
def test_the_suffix_is_no_part_of_the_name(tmp_path, suffix):
    save_npz(tmp_path / "X.npz")
    path = (tmp_path / "X.npz").rename(tmp_path / f"X{suffix}")
    assert load_data(path)[0].name == "X"


def test_a_folder_is_named_after_itself_however_it_is_reached(make_tree, tmp_path):
    root, _ = make_tree("pets")
    odd = root / "train" / ".."
    assert load_data(odd, cache_dir=tmp_path / "cache")[0].name == "pets"


def test_batches_win_over_an_archive_beside_them(make_batches, tmp_path):
    root, _, _ = make_batches()
    (root / "cifar-10-python.tar.gz").write_bytes(b"damaged")
    assert len(load_data(root, cache_dir=tmp_path / "cache")[1]) == 3


def test_an_npz_is_not_copied_into_the_cache(tmp_path):
    save_npz(tmp_path / "things.npz")
    load_data(tmp_path / "things.npz", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_without_pillow_the_error_says_what_to_install(make_tree, tmp_path, monkeypatch):
    root, _ = make_tree()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="pip install pillow"):
        load_data(root, cache_dir=tmp_path / "cache")


def test_without_torchvision_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ImportError, match="pip install torch torchvision"):
        load_data(cache_dir=tmp_path / "cache")
