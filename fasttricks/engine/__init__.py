"""The training loop and what belongs to it: precision, evaluation, callbacks, history, files."""

from fasttricks.engine._callbacks import Callback, FreezeAfter, WeightAverage
from fasttricks.engine._device import choose_device
from fasttricks.engine._evaluate import Evaluation, evaluate, predict
from fasttricks.engine._files import replacing, write_json
from fasttricks.engine._history import History
from fasttricks.engine._precision import Precision
from fasttricks.engine._preserve import preserve_training_state
from fasttricks.engine._progress import Progress
from fasttricks.engine._trainer import Trainer

__all__ = [
    "Callback",
    "Evaluation",
    "FreezeAfter",
    "History",
    "Precision",
    "Progress",
    "Trainer",
    "WeightAverage",
    "choose_device",
    "evaluate",
    "predict",
    "preserve_training_state",
    "replacing",
    "write_json",
]
