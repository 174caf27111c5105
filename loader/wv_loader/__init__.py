"""Feeds training loops from shards: classes rebalanced, every run repeatable and resumable on any number of ranks."""

from wv_loader.augment import Augment
from wv_loader.batch import Batch
from wv_loader.engine import ENGINES
from wv_loader.errors import BadSampleBudgetError, LoaderError, StateMismatchError
from wv_loader.loader import Loader
from wv_loader.read import Failure
from wv_loader.stats import LoaderStats

__all__ = [
    "ENGINES",
    "Augment",
    "BadSampleBudgetError",
    "Batch",
    "Failure",
    "Loader",
    "LoaderError",
    "LoaderStats",
    "StateMismatchError",
]
