"""Feeds training loops from shards: classes rebalanced, every run repeatable and resumable on any number of ranks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wv_loader.augment import Augment
from wv_loader.dali_options import DaliOptions
from wv_loader.engine import ENGINES, engine_line
from wv_loader.engine_choice import missing_gpu, usable_gpus
from wv_loader.errors import (
    BadSampleBudgetError,
    EngineError,
    LoaderError,
    OptionError,
    QuarantineWarning,
    StateMismatchError,
    StorageError,
)
from wv_loader.metrics import MetricsServer, serve_metrics
from wv_loader.pictures import decode_pictures
from wv_loader.read import Failure
from wv_loader.stats import LoaderStats

__all__ = [
    "ENGINES",
    "Augment",
    "BadSampleBudgetError",
    "Batch",
    "DaliOptions",
    "EngineError",
    "Exclusion",
    "Failure",
    "Loader",
    "LoaderError",
    "LoaderStats",
    "MetricsServer",
    "OptionError",
    "QuarantineWarning",
    "StateMismatchError",
    "StorageError",
    "TimmLoader",
    "decode_pictures",
    "engine_line",
    "missing_gpu",
    "serve_metrics",
    "usable_gpus",
]

if TYPE_CHECKING:
    from wv_loader.batch import Batch
    from wv_loader.for_timm import TimmLoader
    from wv_loader.loader import Loader
    from wv_loader.options import Exclusion

_WITH_TORCH = {
    "Batch": "wv_loader.batch",
    "Exclusion": "wv_loader.options",
    "Loader": "wv_loader.loader",
    "TimmLoader": "wv_loader.for_timm",
}


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for: worker processes do without it, and its 200 MB each."""
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WITH_TORCH[name]), name)
