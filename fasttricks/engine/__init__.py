"""The training loop and what belongs to it: precision, evaluation, callbacks, history, files."""

from fasttricks.engine._averaging import Lookahead, StochasticWeightAverage, WeightAverage
from fasttricks.engine._batch_size import BatchSizes, find_batch_size
from fasttricks.engine._callbacks import Callback, EarlyStop, FreezeAfter, KeepBest
from fasttricks.engine._device import choose_device
from fasttricks.engine._distributed import World, distributed
from fasttricks.engine._evaluate import Evaluation, evaluate, predict
from fasttricks.engine._files import replacing, write_json
from fasttricks.engine._history import History
from fasttricks.engine._loggers import JSONLines, TensorBoard
from fasttricks.engine._malloc import keep_freed_memory
from fasttricks.engine._precision import Precision
from fasttricks.engine._precompile import precompile
from fasttricks.engine._preserve import preserve_training_state
from fasttricks.engine._profile import StepProfile, profile_steps
from fasttricks.engine._progress import Progress
from fasttricks.engine._proxy_loader import ProxyLoader
from fasttricks.engine._trainer import Trainer

__all__ = [
    "BatchSizes",
    "Callback",
    "EarlyStop",
    "Evaluation",
    "FreezeAfter",
    "History",
    "JSONLines",
    "KeepBest",
    "Lookahead",
    "Precision",
    "Progress",
    "ProxyLoader",
    "StepProfile",
    "StochasticWeightAverage",
    "TensorBoard",
    "Trainer",
    "WeightAverage",
    "World",
    "choose_device",
    "distributed",
    "evaluate",
    "find_batch_size",
    "keep_freed_memory",
    "precompile",
    "predict",
    "preserve_training_state",
    "profile_steps",
    "replacing",
    "write_json",
]
