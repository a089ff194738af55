"""Two recipes of one run: what may differ between its parts, and what differs."""

import json
from functools import partial
from typing import Any

from basic_lite.recipe import Recipe, flat_values
from basic_lite.recipe.rules import changed_recipe, in_order, measured_keys

# Keys that may differ between a run and its continuation: they don't change what is computed.
FREE = {
    "name",
    "output",
    "data.workers",
    "data.check_images",
    "data.bad_records",
    "training.save_every",
    "training.keep",
    "training.log_every",
    "training.eval_answers",
    "training.text_probe",
    "training.trackers",
    "training.plan",
    "training.micro_batch",
    "training.gradient_checkpointing",
    "training.offload_activations",
    "model.tower_on_host",
}


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Keys that differ and matter, each as ``key: old → new``."""
    flat_old, flat_new = _matters(old), _matters(new)
    return [
        f"{key}: {_as_written(flat_old.get(key))} → {_as_written(flat_new.get(key))}"
        for key in sorted(flat_old.keys() | flat_new.keys())
        if flat_old.get(key) != flat_new.get(key)
    ]


def _as_written(value: Any) -> str:
    """A value as a recipe has it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return repr(value)


def _matters(recipe: Recipe) -> dict[str, Any]:
    # The order of several sources changes nothing.
    if isinstance(recipe.data.train, list):
        recipe = changed_recipe(recipe, {"data.train": in_order(recipe.data.train)})
    free = FREE if measured_keys(partial(getattr, recipe.supervision)) else FREE | {"supervision.refinement_batches"}
    return {key: value for key, value in flat_values(recipe).items() if key not in free}
