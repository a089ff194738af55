"""What a run's loop works with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from basic_lite.data.prepare import Prepared
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.supervision import Supervision
from basic_lite.training.breakdown import Breakdown
from basic_lite.training.plan import Plan
from basic_lite.training.processes import Processes
from basic_lite.training.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """A run that can begin: all of it is made and checked before the first step."""

    recipe: Recipe
    loaded: Loaded
    data: Prepared
    supervision: Supervision | None
    breakdown: Breakdown  # around BASIC's operations
    folder: RunFolder
    started_from: dict[str, Any] | None  # the manifest's record of the run that the weights came from
    processes: Processes
    device: torch.device
    console: Console
    next_plan: Callable[[Plan], Plan | None] | None = None  # see ``Recovery``
    report: Callable[[], object] = lambda: None  # writes a page on the run as it is now
