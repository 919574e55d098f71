"""Fast-training components for PyTorch on small images.

Five concepts, each usable alone: schedules (pure functions of the update), transforms (of whole
batches), builders of models, the resident ``DeviceLoader``, and the ``Trainer``.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fasttricks.benchmark import (
    Summary,
    describe_environment,
    make_run_folder,
    summarize,
    write_run,
)
from fasttricks.data import (
    DataError,
    DataNotFoundError,
    DataUnavailableError,
    DeviceLoader,
    ImageSet,
    load_data,
    read_digits,
)
from fasttricks.engine import (
    Callback,
    Evaluation,
    FreezeAfter,
    History,
    Precision,
    Progress,
    Trainer,
    WeightAverage,
    choose_device,
    evaluate,
    predict,
    preserve_training_state,
    write_json,
)
from fasttricks.lr_range_test import RangeTest, lr_range_test
from fasttricks.lr_scheduler import CyclicLR, OneCycleLR, ScheduledGroups
from fasttricks.models import (
    ResNet9,
    SpeedrunNet,
    dirac_,
    resnet9,
    speedrun_net,
    whiten_,
)
from fasttricks.optim import Muon, orthogonalize
from fasttricks.schedules import (
    Schedule,
    constant,
    cosine,
    cycled_momentum,
    exp_range,
    linear,
    one_cycle,
    piecewise_linear,
    step_decay,
    triangular,
    triangular2,
    warmup,
)
from fasttricks.transforms import (
    AlternatingFlip,
    Cutout,
    Draws,
    Normalize,
    Pipeline,
    ProgressiveResize,
    RandomHorizontalFlip,
    RandomIntensity,
    RandomTranslate,
    Transform,
    cutout,
)

try:
    __version__ = version("fasttricks")  # written once, in pyproject.toml
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "0+unknown"

__all__ = [
    "AlternatingFlip",
    "Callback",
    "Cutout",
    "CyclicLR",
    "DataError",
    "DataNotFoundError",
    "DataUnavailableError",
    "DeviceLoader",
    "Draws",
    "Evaluation",
    "FreezeAfter",
    "History",
    "ImageSet",
    "Muon",
    "Normalize",
    "OneCycleLR",
    "Pipeline",
    "Precision",
    "Progress",
    "ProgressiveResize",
    "RandomHorizontalFlip",
    "RandomIntensity",
    "RandomTranslate",
    "RangeTest",
    "ResNet9",
    "Schedule",
    "ScheduledGroups",
    "SpeedrunNet",
    "Summary",
    "Trainer",
    "Transform",
    "WeightAverage",
    "__version__",
    "choose_device",
    "constant",
    "cosine",
    "cutout",
    "cycled_momentum",
    "describe_environment",
    "dirac_",
    "evaluate",
    "exp_range",
    "linear",
    "load_data",
    "lr_range_test",
    "make_run_folder",
    "one_cycle",
    "orthogonalize",
    "piecewise_linear",
    "predict",
    "preserve_training_state",
    "read_digits",
    "resnet9",
    "speedrun_net",
    "step_decay",
    "summarize",
    "triangular",
    "triangular2",
    "warmup",
    "whiten_",
    "write_json",
    "write_run",
]
