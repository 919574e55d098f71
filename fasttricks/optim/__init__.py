"""Optimizers and parameter groups for fast training."""

from fasttricks.optim._groups import parameter_groups, split_for_muon
from fasttricks.optim._muon import Muon, orthogonalize

__all__ = ["Muon", "orthogonalize", "parameter_groups", "split_for_muon"]
