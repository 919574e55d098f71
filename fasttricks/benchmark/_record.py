"""The folder of a run: everything needed to see what was run, on what, and what came of it."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fasttricks import _native
from fasttricks.engine import History, replacing, write_json
from fasttricks.engine._files import without_nonfinite

RUN_FILES = ("record.json", "history.csv", "curves.png", "model.safetensors")


def describe_environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the hardware and versions that a figure depends on, ready for JSON.

    Args:
        device: The device that is used.

    Returns:
        ``hardware`` (processor, its threads in use, which C++ of the library this process has
        compiled for it, and the accelerator's name) and ``versions`` (Python, torch, torchvision,
        fasttricks, operating system, CUDA).
    """
    device = torch.device(device)
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "hardware": {
            "device": device.type,
            "accelerator": accelerator,
            "processor": _processor_name(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "native": sorted(_native.LOADED),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: _version(name) for name in ("torchvision", "fasttricks")},
            "cuda": torch.version.cuda if device.type == "cuda" else None,
            "platform": platform.platform(),
        },
    }


def make_run_folder(folder: Path | str) -> Path:
    """Make the folder of a run and check that ``write_run`` will be able to fill it.

    Call it before the training, so that hours of work do not end in an error.

    Args:
        folder: Made with its parents if it is missing.

    Returns:
        The folder's path.

    Raises:
        ValueError: If it is a file, cannot be made, or cannot be written to.
        ImportError: If matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ImportError('a run folder needs matplotlib; pip install "fasttricks[examples]"')
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, got the file {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"output folder {folder} cannot be made or written to: {error}") from error
    return folder


def write_run(
    folder: Path | str, *, record: Mapping[str, Any], history: History, model: nn.Module
) -> None:
    """Write ``record.json``, ``history.csv``, ``curves.png`` and ``model.safetensors``.

    Each file is written whole or not at all; ``record.json`` comes last, so a folder that has one
    is complete. Numbers that are not finite become null. The weights are stored contiguous, under
    the names of the module's ``state_dict``.

    Args:
        folder: Made if it is missing; files of an earlier run in it are replaced.
        record: Settings and results, JSON values only.
        history: The run's rows.
        model: The trained module.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If ``record`` holds something that JSON cannot.
    """
    # Typed in its package only since 0.5; the import stays here to keep `import fasttricks` light.
    from safetensors.torch import save

    record = without_nonfinite(dict(record))
    json.dumps(record)  # raises before anything is touched
    folder = Path(folder)
    (folder / "record.json").unlink(missing_ok=True)
    history.to_csv(folder / "history.csv")
    figure = history.plot()
    with replacing(folder / "curves.png") as temporary:
        figure.savefig(temporary, dpi=120)
    # Copies, as safetensors refuses tensors that share their memory, such as tied weights.
    weights = {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in model.state_dict().items()
    }
    with replacing(folder / "model.safetensors") as temporary:
        # safetensors' own writer would leave a file that its owner alone can read.
        temporary.write_bytes(save(weights))
    write_json(folder / "record.json", record)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor_name() -> str:
    # platform.processor() is empty or only the architecture on Linux.
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
