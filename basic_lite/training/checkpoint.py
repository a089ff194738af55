"""A checkpoint: a bundle, and beside it all that a run needs to continue bit for bit.

::

    … the bundle's files
    optimizer.safetensors     state tensors, by parameter and name
    generators.safetensors    each process's random generators
    training.json             step, scheduler, optimizer's numbers, what the loop remembers
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from basic_lite.errors import UserError
from basic_lite.outside import read_json_file
from basic_lite.training.bundle_files import GENERATORS, OPTIMIZER, TRAINING, Bundle
from basic_lite.training.files import write_json
from basic_lite.training.plan import Plan
from basic_lite.training.processes import Processes
from basic_lite.training.recovery import set_random_state
from basic_lite.training.tensor_files import read_tensors, save_tensors

# What torch and bitsandbytes call the two moments of a parameter; both have its shape.
MOMENTS = ("exp_avg", "exp_avg_sq", "state1", "state2")


@dataclass
class Progress:
    """What a run's loop remembers from step to step, besides weights and optimizer."""

    step: int = 0  # steps done
    lowered_to: int | None = None  # samples of a micro-batch, once memory ran out
    recomputed: int | None = None  # decoder layers since then; None: the recipe's
    offloaded: bool = False  # whether their inputs are on the host since then
    projector_seen: bool = False  # a step with an image has been looked at
    last_terms: dict[str, float] = field(default_factory=dict)  # of the last step that had each
    answered_at_once: int | None = None  # held-out questions, once memory ran out
    gate: dict[str, Any] | None = None  # the gate's state after its last look
    losses: list[float] = field(default_factory=list)  # LM losses of the last steps, which a spike is held against

    def remember(self, plan: Plan, own: Plan) -> None:
        """Remember the plan that memory was enough for, where it isn't the recipe's own."""
        if plan != own:
            self.lowered_to, self.recomputed = plan.micro_batch, plan.recomputed
            self.offloaded = plan.offload_activations

    def lowered(self, plan: Plan) -> Plan:
        """The recipe's plan, or one that needs less if the run fell to that."""
        return replace(
            plan,
            micro_batch=min(plan.micro_batch, self.lowered_to or plan.micro_batch),
            recomputed=max(plan.recomputed, self.recomputed or 0),
            offload_activations=plan.offload_activations or self.offloaded,
        )


def write_training_state(
    folder: Path, progress: Progress, optimizer: torch.optim.Optimizer, scheduler: Any, generators: list[list[Tensor]]
) -> None:
    """Write the files beside the bundle.

    Args:
        generators: each process's ``random_state``.
    """
    tensors, numbers = _flatten(optimizer.state_dict()["state"])
    save_tensors(tensors, folder / OPTIMIZER)
    save_tensors(
        {
            f"{process}.{place}": state
            for process, states in enumerate(generators)
            for place, state in enumerate(states)
        },
        folder / GENERATORS,
    )
    state = {
        "progress": asdict(progress),
        "optimizer": {"groups": optimizer.state_dict()["param_groups"], "numbers": numbers},
        "scheduler": {k: v for k, v in scheduler.state_dict().items() if k != "lr_lambdas"},
    }
    write_json(folder / TRAINING, state)


def read_progress(bundle: Bundle) -> Progress:
    """Read what the loop remembered.

    Raises:
        UserError: the file isn't one of ours.
    """
    try:
        # From a dict, since an instance is taken as it is.
        return TypeAdapter(Progress).validate_python(vars(Progress(**_training(bundle)["progress"])))
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(bundle, error) from error


def restore_training_state(
    bundle: Bundle, optimizer: torch.optim.Optimizer, scheduler: Any, device: torch.device, processes: Processes
) -> None:
    """Restore optimizer, scheduler and this process's generators.

    Generators stay as they are where the run continues with more processes than before.

    Raises:
        UserError: the state is of another optimizer or model.
    """
    state = _training(bundle)
    generators = read_tensors(bundle.folder / GENERATORS)
    try:
        numbers = state["optimizer"]["numbers"]
        saved = {"state": _unflatten(read_tensors(bundle.folder / OPTIMIZER), numbers)}
        saved["param_groups"] = state["optimizer"]["groups"]
        _require_same_sizes(saved, optimizer)
        optimizer.load_state_dict(saved)
        # The schedule's functions are made from the recipe, not read.
        scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": [None] * len(optimizer.param_groups)})
        own = [generators[name] for name in sorted(generators) if name.split(".")[0] == str(processes.index)]
        if own:
            set_random_state(own, device)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
        raise _foreign(bundle, error) from error


def _training(bundle: Bundle) -> dict[str, Any]:
    try:
        state = read_json_file(bundle.folder / TRAINING)
    except (OSError, ValueError) as error:
        raise _foreign(bundle, error) from error
    if not isinstance(state, dict):
        raise _foreign(bundle, TypeError("no object"))
    return state


def _foreign(bundle: Bundle, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"--resume: the training state in {bundle.folder} doesn't fit this run's optimizer and model ({reason}). "
        "Use the recipe of the run that wrote it, take another checkpoint with --checkpoint, "
        "or start a new run with name=…"
    )


def _require_same_sizes(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Refuse states of another size: torch takes them and fails in the next step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if [len(group["params"]) for group in saved["param_groups"]] != [len(g["params"]) for g in optimizer.param_groups]:
        raise ValueError("its parameter groups have other sizes")
    if any(index >= len(parameters) for index in saved["state"]):
        raise ValueError("it has more parameters")
    for index, entries in saved["state"].items():
        for path, tensor in _flatten(entries)[0].items():
            if path.split("/")[-1] in MOMENTS and tensor.shape != parameters[index].shape:
                raise ValueError(f"parameter {index} has another shape")


def _flatten(state: Mapping[Any, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Nested optimizer state as tensors and plain values, by path: ``3/exp_avg``."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for key, value in state.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            inner_tensors, inner_numbers = _flatten(value, f"{path}/")
            tensors |= inner_tensors
            numbers |= inner_numbers
        elif isinstance(value, Tensor):
            tensors[path] = value
        else:
            numbers[path] = value
    return tensors, numbers


def _unflatten(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The reverse of ``_flatten``; the first part of a path is a parameter's number."""
    state: dict[int, dict[str, Any]] = {}
    for path, value in {**tensors, **numbers}.items():
        index, *parts, last = path.split("/")
        node = state.setdefault(int(index), {})
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = value
    return state
