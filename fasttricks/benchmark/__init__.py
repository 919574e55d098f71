"""Measurement: statistics over seeds, and the record of a run."""

from fasttricks.benchmark._record import RUN_FILES, describe_environment, make_run_folder, write_run
from fasttricks.benchmark._statistics import Summary, summarize

__all__ = [
    "RUN_FILES",
    "Summary",
    "describe_environment",
    "make_run_folder",
    "summarize",
    "write_run",
]
