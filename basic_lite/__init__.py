"""basic-lite: BASIC (arXiv 2508.06895) for one graphics card.

    from basic_lite import load_recipe, open_run, train

docs/PYTHON.md shows them. Importing the package is light on purpose, since ``basic-lite --help`` must answer at once:
all else is imported when its name is first used.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

from basic_lite.version import __version__

if TYPE_CHECKING:
    from basic_lite.api import Conversation, Model, TrainedModel, open_model, open_run, train
    from basic_lite.errors import Interrupted, UserError
    from basic_lite.recipe import Recipe, load_recipe
    from basic_lite.run import RunResult
    from basic_lite.scoring.prediction import Prediction
    from basic_lite.tools.score import EvalResult

__all__ = [
    "Conversation", "EvalResult", "Interrupted", "Model", "Prediction", "Recipe", "RunResult", "TrainedModel",
    "UserError", "__version__", "load_recipe", "open_model", "open_run", "train",
]  # fmt: skip

# Name → module that it is imported from, when it is first used.
_HOMES = {
    "Conversation": "basic_lite.api",
    "EvalResult": "basic_lite.tools.score",
    "Interrupted": "basic_lite.errors",
    "Model": "basic_lite.api",
    "Prediction": "basic_lite.scoring.prediction",
    "Recipe": "basic_lite.recipe",
    "RunResult": "basic_lite.run",
    "TrainedModel": "basic_lite.api",
    "UserError": "basic_lite.errors",
    "load_recipe": "basic_lite.recipe",
    "open_model": "basic_lite.api",
    "open_run": "basic_lite.api",
    "train": "basic_lite.api",
}

# bitsandbytes 0.50 warns at import, on CPUs with AVX512-BF16, that an optional inference kernel isn't installed.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
