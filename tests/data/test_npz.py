from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fasttricks.data import DataError, load_data


def arrays(number=4, shape=(5, 6, 3), classes=3, **changes):
    rng = np.random.default_rng(0)
    labels = np.arange(number) % classes
    fresh = {
        "x_train": rng.integers(0, 256, (number, *shape), dtype=np.uint8),
        "y_train": labels,
        "x_test": rng.integers(0, 256, (number, *shape), dtype=np.uint8),
        "y_test": labels,
    }
    return {**fresh, **changes}


def load(tmp_path, **content):
    np.savez(tmp_path / "things.npz", **content)
    return load_data(tmp_path / "things.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_comes_back_bit_for_bit(tmp_path, save):
    content = arrays()
    save(tmp_path / "things.npz", **content)
    for split, image_set in zip(("train", "test"), load_data(tmp_path / "things.npz"), strict=True):
        expected = torch.from_numpy(content[f"x_{split}"]).permute(0, 3, 1, 2)
        assert torch.equal(image_set.images, expected)
        assert image_set.labels.tolist() == content[f"y_{split}"].tolist()
        assert image_set.classes == ("0", "1", "2")
        assert image_set.name == "things"


@given(
    dtype=st.sampled_from(["u1", "i1", "<u2", ">i4", "i8", "u8"]),
    column=st.booleans(),
    channels=st.sampled_from([None, 1, 3, 4]),
    fortran=st.booleans(),
)
def test_any_integer_labels_and_any_storage_order_will_do(
    tmp_path_factory, dtype, column, channels, fortran
):
    shape = (5, 6) if channels is None else (5, 6, channels)
    content = arrays(shape=shape)
    labels = content["y_train"].astype(dtype)
    changes = {"y_train": labels[:, None] if column else labels}
    if fortran:
        changes["x_train"] = np.asfortranarray(content["x_train"])
    train, _ = load(tmp_path_factory.mktemp("npz"), **{**content, **changes})
    assert train.channels == (channels or 1)
    assert train.image_size == (5, 6)
    assert train.labels.tolist() == [0, 1, 2, 0]
    expected = content["x_train"].reshape(4, 5, 6, -1)
    assert torch.equal(train.images.permute(0, 2, 3, 1), torch.from_numpy(expected))


def zeros(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": zeros(4, 5, 6, 3, dtype=float)}, "x_train must have dtype uint8 .*float64"),
        ({"x_train": zeros(4, 5)}, r"x_train must have the shape .*got \(4, 5\)"),
        ({"x_test": zeros(0, 5, 6, 3)}, r"x_test must have the shape .*got \(0, 5, 6, 3\)"),
        ({"x_train": zeros(4, 3, 5, 6)}, r"write x_train.transpose\(0, 2, 3, 1\)"),
        ({"x_train": zeros(4, 9, 9, 9)}, r"1 to 4 channels .*\(4, 9, 9, 9\) in .*things.npz$"),
        ({"x_train": zeros(3, 5, 6, 3)}, "x_train and y_train .* 3 images and 4 labels"),
        ({"x_test": zeros(4, 7, 7, 3)}, r"one shape .*\(5, 6, 3\) and \(7, 7, 3\)"),
        ({"y_train": np.array([0.0, 1, 2, 0])}, "y_train must have a whole-number dtype.*float64"),
        ({"y_train": np.array([True, False] * 2)}, "whole-number dtype, got bool"),
        ({"y_train": np.array([[0, 1], [2, 0]])}, r"y_train must have the shape .*got \(2, 2\)"),
        ({"y_train": np.array([0, 1, -2, 0])}, "y_train must hold labels from 0 .* got -2"),
        ({"y_train": np.array([0, 1, 2, 2**64 - 1], dtype="u8")}, f"got {2**64 - 1}"),
        ({"y_test": np.array([0, 1, 2, 3])}, "y_test must hold labels between 0 and 2 .*got 3"),
        ({"y_test": np.array([0, 1, 2, "a"], dtype=object)}, "cannot read y_test"),
    ],
)
def test_wrong_arrays_are_named_with_file_and_value(tmp_path, changes, message):
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, **arrays(**changes))
    assert "things.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_object_arrays_are_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    trap = np.array([Trap()] * 4, dtype=object)
    with pytest.raises(DataError, match="cannot read y_train"):
        load(tmp_path, **arrays(y_train=trap))
    assert not (tmp_path / "sprung").exists()


def test_missing_keys_are_listed_with_those_that_are_there(tmp_path):
    content = arrays()
    del content["y_train"], content["x_test"]
    with pytest.raises(DataError, match=r"missing: y_train, x_test \(it holds x_train, y_test\)"):
        load(tmp_path, **content)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "npy"])
def test_damaged_npz_is_a_data_error(tmp_path, damage):
    path = tmp_path / "things.npz"
    np.savez_compressed(path, **arrays())
    content = bytearray(path.read_bytes())
    content[150] ^= 255
    if damage == "npy":
        np.save(tmp_path / "one.npy", np.zeros(3))
        path.write_bytes((tmp_path / "one.npy").read_bytes())
    else:
        pieces = {
            "empty": b"",
            "text": b"this is no zip file",
            "cut": path.read_bytes()[:-100],
            "flipped": bytes(content),
        }
        path.write_bytes(pieces[damage])
    with pytest.raises(DataError, match=r"things\.npz"):
        load_data(path)


def test_classes_without_an_image_are_warned_of(tmp_path):
    labels = np.array([1, 2, 4, 4])
    with pytest.warns(UserWarning, match="no image of 2 of the 5 classes, such as 0, in"):
        train, _ = load(tmp_path, **arrays(y_train=labels, y_test=labels))
    assert train.num_classes == 5
