from __future__ import annotations

import hashlib
import shutil
import socket
import tarfile
import time

import pytest
import torch

from fasttricks.data import DataUnavailableError, load_data
from fasttricks.data import _download as download

ARCHIVE = "cifar-10-python.tar.gz"
datasets = pytest.importorskip("torchvision.datasets")


@pytest.fixture
def served(make_batches, monkeypatch):
    """A little archive at torchvision's address, which is a file here; returns its path."""
    root, _, _ = make_batches("server")
    with tarfile.open(root / ARCHIVE, "w:gz") as archive:
        archive.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    shutil.rmtree(root / "cifar-10-batches-py")
    content = (root / ARCHIVE).read_bytes()
    monkeypatch.setattr(datasets.CIFAR10, "url", (root / ARCHIVE).as_uri())
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
    return root / ARCHIVE


@pytest.fixture
def no_network(monkeypatch):
    """An address that nothing listens on: connecting is refused without leaving the machine."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{port}/{ARCHIVE}")


def test_without_a_path_the_archive_is_fetched_once_and_read(served, tmp_path):
    cache = tmp_path / "cache"
    expected = load_data(served, cache_dir=tmp_path / "other")
    first = load_data(cache_dir=cache)
    served.unlink()
    for pair in (first, load_data(cache_dir=cache)):
        for image_set, other in zip(pair, expected, strict=True):
            assert torch.equal(image_set.images, other.images)
            assert torch.equal(image_set.labels, other.labels)
    assert sorted(path.name for path in cache.iterdir()) == [ARCHIVE, "decoded"]


def test_progress_counts_bytes_up_to_the_size(served, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_CHUNK_BYTES", 10_000)
    size, calls = served.stat().st_size, []
    download.fetch_cifar10(tmp_path, progress=lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == [*range(10_000, size, 10_000), size]
    assert {call[1:] for call in calls} == {(size, "downloading CIFAR-10")}


def test_a_download_with_another_md5_is_refused_and_removed(served, tmp_path):
    served.write_bytes(served.read_bytes()[:-1])
    with pytest.raises(DataUnavailableError, match=r"has md5 .*, expected .* by other means"):
        load_data(cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_network_the_error_comes_soon_and_says_what_to_do(no_network, tmp_path):
    start = time.monotonic()
    with pytest.raises(DataUnavailableError, match="cannot download CIFAR-10 from http") as caught:
        load_data(cache_dir=tmp_path / "cache")
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)
    assert "cifar-10-python.tar.gz by other means and pass its path" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_server_that_never_answers_is_given_up(monkeypatch, tmp_path, no_network):
    monkeypatch.setattr(download, "_TIMEOUT_SECONDS", 0.1)
    default, start = socket.getdefaulttimeout(), time.monotonic()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/{ARCHIVE}"
        monkeypatch.setattr(datasets.CIFAR10, "url", url)
        with pytest.raises(DataUnavailableError, match="timed out"):
            load_data(cache_dir=tmp_path / "cache")
    assert time.monotonic() - start < 5
    assert socket.getdefaulttimeout() == default


def test_a_cache_folder_that_cannot_be_made_is_named(served, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataUnavailableError, match=r"to .*cache \(.*\): get cifar-10-python"):
        load_data(cache_dir=tmp_path / "cache")
