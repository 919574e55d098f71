"""Optimizers and parameter groups for fast training."""

from fasttricks.optim._muon import Muon, orthogonalize

__all__ = ["Muon", "orthogonalize"]
