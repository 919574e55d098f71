from __future__ import annotations

import builtins
import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fasttricks.data import DataError
from fasttricks.data._batch_pickle import array_from, load_batch


@given(
    number=st.integers(1, 4),
    width=st.integers(1, 5),
    protocol=st.integers(0, 4),
    fortran=st.booleans(),
)
def test_arrays_come_back_as_numpy_pickled_them(number, width, protocol, fortran):
    array = np.random.default_rng(width).integers(0, 256, (number, width), dtype=np.uint8)
    array = np.asfortranarray(array) if fortran else array
    entries = load_batch(pickle.dumps({"data": array}, protocol=protocol), "batch")
    assert np.array_equal(array_from(entries["data"], "batch"), array)


def test_what_python_2_wrote_is_read():
    # the shape of the real files: protocol 2, byte strings as keys, numpy's name of before 2.0
    content = (
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        b"U\x01b\x87R(K\x01K\x01K\x03\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x03\x01\x02\xfftbs."
    )
    assert array_from(load_batch(content, "batch")["data"], "batch").tolist() == [[1, 2, 255]]


class Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks(folder):
    target = str(folder / "sprung")
    yield Call(os.mkdir, target)
    yield Call(os.system, f"touch {target}")
    yield Call(builtins.eval, f"open({target!r}, 'w')")
    yield Call(builtins.__import__, "os")
    yield {"data": Call(builtins.exec, f"open({target!r}, 'w')"), "labels": [0]}
    yield np.array([Call(os.mkdir, target)], dtype=object)


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_hostile_pickles_run_nothing(tmp_path, number, protocol):
    content = pickle.dumps(list(attacks(tmp_path))[number], protocol=protocol)
    with pytest.raises(DataError, match=r"batch is not .*it asks for .*nothing in it was run"):
        load_batch(content, "batch")
    assert not (tmp_path / "sprung").exists()


def test_the_attacks_above_would_have_worked(tmp_path):
    pickle.loads(pickle.dumps(next(attacks(tmp_path))))
    assert (tmp_path / "sprung").exists()


def test_bytes_that_python_3_wrote_for_python_2_are_read():
    entries = load_batch(pickle.dumps({b"data": b"\x00\xff"}, protocol=2), "batch")
    assert entries == {"data": b"\x00\xff"}


def test_codecs_that_are_no_text_encodings_are_not_called():
    call = b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R"
    with pytest.raises(DataError, match="not a text encoding"):
        load_batch(b"\x80\x02}X\x04\x00\x00\x00data" + call + b"s.", "batch")


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x02}", b"\x80\x02}q\x00.trailing"[:4]])
def test_damaged_pickles_are_data_errors(content):
    with pytest.raises(DataError, match="batch is not a batch of CIFAR-10"):
        load_batch(content, "batch")


def test_a_pickle_of_something_else_is_a_data_error():
    with pytest.raises(DataError, match="must hold a dict, got list"):
        load_batch(pickle.dumps([1]), "batch")


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, 2],
        np.zeros((2, 2)),
        np.zeros((2, 2), np.int8),
        np.zeros(2, dtype=object),
        np.dtype("u1"),
    ],
)
def test_what_is_no_uint8_array_is_a_data_error(value):
    entries = load_batch(pickle.dumps({"data": value}, protocol=2), "batch")
    with pytest.raises(DataError, match="images of batch must be a uint8 array"):
        array_from(entries["data"], "batch")


def test_an_array_whose_bytes_do_not_fill_its_shape_is_a_data_error():
    content = pickle.dumps({"data": np.zeros((2, 3), dtype=np.uint8)}, protocol=2)
    entries = load_batch(content.replace(b"K\x02K\x03\x86", b"K\x09K\x09\x86"), "batch")
    with pytest.raises(DataError, match=r"cannot reshape array of size 6 into shape \(9,9\)"):
        array_from(entries["data"], "batch")
