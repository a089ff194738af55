"""A checkpoint: a bundle, and beside it all that a run needs to continue bit for bit.

::

    … the bundle's files
    optimizer.safetensors     state tensors, by parameter and name
    generators.safetensors    each process's random generators
    training.json             step, optimizer's numbers, what the loop remembers

Of the optimizer only what it has gathered for each parameter is kept. Rates, betas and decay are the recipe's, and the
schedule's place follows from the step, so no file can set them.
"""

from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from basic_lite.errors import UserError, reason_of
from basic_lite.outside import read_json_file
from basic_lite.recipe.schema import MOST
from basic_lite.training import optimizer_state
from basic_lite.training.bundle_files import GENERATORS, OPTIMIZER, TRAINING, Bundle
from basic_lite.training.files import write_json
from basic_lite.training.log_lines import RARE
from basic_lite.training.manifest import Count, first_problem
from basic_lite.training.plan import Plan
from basic_lite.training.processes import Processes
from basic_lite.training.recovery import set_random_state
from basic_lite.training.tensor_files import read_tensors, save_tensors

# A file's values are believed only where they are of these types and within these bounds. The loop sets its own.
_BELIEVED = ConfigDict(strict=True, extra="forbid")
_Some = Annotated[int, Field(ge=1, le=MOST)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Target(BaseModel):
    """``TargetPlan`` as JSON has it."""

    model_config = _BELIEVED
    layer_weights: Annotated[list[Annotated[_Finite, Field(ge=0)]], Field(min_length=1)]
    massive: list[list[Count]] | None


class _Gate(BaseModel):
    """``GateState`` as JSON has it."""

    model_config = _BELIEVED
    open: bool
    plan: _Target | None
    chosen: bool
    steps_on: Count
    refused: Count | None = None
    asked: Annotated[_Finite, Field(ge=0)] = 0.0
    verdict: str


def _terms(given: dict[str, float]) -> dict[str, float]:
    # What a log line has besides: these would be written over.
    if taken := ({"step"} | RARE) & given.keys():
        raise ValueError(f"{min(taken)} is no term of a loss")
    return given


def _gate(given: dict[str, Any]) -> dict[str, Any]:
    _Gate.model_validate(given)
    return given


@dataclass(config=_BELIEVED)
class Progress:
    """What a run's loop remembers from step to step, besides weights and optimizer."""

    step: Count = 0  # steps done
    lowered_to: _Some | None = None  # samples of a micro-batch, once memory ran out
    recomputed: Count | None = None  # decoder layers since then; None: the recipe's
    offloaded: bool = False  # whether their inputs are on the host since then
    projector_seen: bool = False  # a step with an image has been looked at
    # Of the last step that had each.
    last_terms: Annotated[dict[str, float], AfterValidator(_terms)] = field(default_factory=dict)
    answered_at_once: _Some | None = None  # held-out questions, once memory ran out
    gate: Annotated[dict[str, Any], AfterValidator(_gate)] | None = None  # the gate's state after its last look
    losses: list[_Finite] = field(default_factory=list)  # LM losses of the last steps, which a spike is held against

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
            recomputed=min(max(plan.recomputed, self.recomputed or 0), plan.layers),
            offload_activations=plan.offload_activations or self.offloaded,
        )


def write_training_state(
    folder: Path, progress: Progress, optimizer: torch.optim.Optimizer, generators: list[list[Tensor]]
) -> None:
    """Write the files beside the bundle.

    Args:
        generators: each process's ``random_state``.
    """
    tensors, numbers = optimizer_state.flatten(optimizer.state_dict()["state"])
    save_tensors(tensors, folder / OPTIMIZER)
    save_tensors(
        {
            f"{process}.{place}": state
            for process, states in enumerate(generators)
            for place, state in enumerate(states)
        },
        folder / GENERATORS,
    )
    groups = optimizer_state.groups_of(optimizer)
    state = {"progress": asdict(progress), "optimizer": {"groups": groups, "numbers": numbers}}
    write_json(folder / TRAINING, state)


def read_progress(bundle: Bundle, steps: int) -> Progress:
    """Read what the loop remembered.

    Args:
        steps: the whole run's.

    Raises:
        UserError: the file isn't one of ours, or of another step than the manifest says.
    """
    try:
        progress = Progress(**_training(bundle)["progress"])
        if progress.step != bundle.step:
            raise ValueError(f"it is of step {progress.step}, and its manifest of step {bundle.step}")
        if progress.step > steps:
            raise ValueError(f"it is of step {progress.step}, and the run has {steps}")
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(bundle, error) from error
    return progress


def restore_training_state(
    bundle: Bundle,
    progress: Progress,
    optimizer: torch.optim.Optimizer,
    scheduler: LambdaLR,
    device: torch.device,
    processes: Processes,
) -> None:
    """Restore optimizer and this process's generators, and put the schedule where the step says.

    Generators stay as they are where the run continues with more processes than before.

    Args:
        progress: what ``read_progress`` has read.
        optimizer, scheduler: as the recipe makes them, at step 0.

    Raises:
        UserError: the state is of another optimizer or model.
    """
    state = _training(bundle)
    generators, tensors = read_tensors(bundle.folder / GENERATORS), read_tensors(bundle.folder / OPTIMIZER)
    try:
        groups, numbers = state["optimizer"]["groups"], state["optimizer"]["numbers"]
        if [(one["name"], one["params"]) for one in groups] != [
            (one["name"], one["params"]) for one in optimizer_state.groups_of(optimizer)
        ]:
            raise ValueError("its parameter groups are others")
        # A run of which every record was dropped so far has updated nothing.
        if tensors or numbers or progress.losses:
            optimizer_state.restore(optimizer, tensors, numbers, steps=progress.step)
        own = [generators[name] for name in sorted(generators) if name.split(".")[0] == str(processes.index)]
        if own:
            set_random_state(own, device)
        elif processes.index < bundle.manifest.get("processes", 1):
            raise ValueError(f"it has no generators of process {processes.index}")
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
        raise _foreign(bundle, error) from error
    _move(scheduler, progress.step)


def _move(scheduler: LambdaLR, step: int) -> None:
    """Put a schedule where so many steps would have brought it."""
    rates = [base * factor(step) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    place = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
    scheduler.load_state_dict(place | {"lr_lambdas": [None] * len(rates)})


def _training(bundle: Bundle) -> dict[str, Any]:
    try:
        state = read_json_file(bundle.folder / TRAINING)
    except (OSError, ValueError) as error:
        raise _foreign(bundle, error) from error
    if not isinstance(state, dict):
        raise _foreign(bundle, TypeError("no object"))
    return state


def _foreign(bundle: Bundle, error: Exception) -> UserError:
    reason = first_problem(error) if isinstance(error, ValidationError) else reason_of(error)
    return UserError(
        f"--resume: the training state in {bundle.folder} doesn't fit this run's optimizer and model ({reason}). "
        "Use the recipe of the run that wrote it, take another checkpoint with --checkpoint, "
        "or start a new run with name=…"
    )
