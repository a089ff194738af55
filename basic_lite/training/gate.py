"""The gate: BASIC is on only where its premise is measured to hold.

The premise is that v̂ is better than v, in the score of the refinement curve. A look measures both on samples with
pictures; the gate opens when the 95 % interval of the gain is above 0, and shuts when it no longer is. While it is shut
λ1 = λ2 = 0: nothing is tapped, and the run is LLaVA's own. A look also chooses what the recipe leaves to measurement
(layers, their weights, massive dimensions), on other samples than those that the gain is measured on. Once the gate is
open, the choice stays.

Not of the paper; the reasons are in docs/METHOD.md.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from basic_lite.console import Say
from basic_lite.data.prepare import Prepared
from basic_lite.model.load import Loaded
from basic_lite.model.parts import Parts
from basic_lite.recipe.schema import Recipe, SupervisionSection
from basic_lite.supervision import Supervision
from basic_lite.supervision.calibration import calibrate, leaves_open, scores_decide
from basic_lite.supervision.premise import SEARCHED_PATCHES, RefinementCurve, refinement_curve
from basic_lite.supervision.target import TargetPlan
from basic_lite.training.assembly import autocast_of, projector_is_fresh, uses_autocast
from basic_lite.training.batches import Schedule
from basic_lite.training.evaluation import curve_batches, if_memory_allows
from basic_lite.training.processes import Processes

# The first look at a fresh projector: before that its output is noise. Later looks double their distance.
FIRST_LOOK = 16
# A gate's looks cost at most this share of the run's arithmetic, apart from those of evaluations.
COST = 0.01
# Fewer samples than this decide nothing.
FEWEST_SAMPLES = 16


@dataclass(frozen=True)
class Looks:
    """When the gate looks, and at how many samples each time."""

    steps: tuple[int, ...]  # after so many steps; 0: before the first
    samples: int


def plan_looks(steps: int, *, fresh: bool, most_samples: int, passes: float, passes_a_look: float) -> Looks:
    """Looks after 0 (unless the projector is fresh), 16, 32, 64 … steps, as many as ``COST`` allows.

    With too little for all of them, some are left out evenly; with too little for one, it has fewer samples, but
    ``FEWEST_SAMPLES`` of them at least.

    Args:
        steps: of the run.
        fresh: the projector starts untrained.
        most_samples: samples of a look where cost is no matter.
        passes: forwards of one sample that the run's arithmetic is worth.
        passes_a_look: forwards of one sample that a look costs for each of its samples.
    """
    first = min(FIRST_LOOK, max(1, steps // 4))
    doubling = [first * 2**i for i in range(max(1, math.ceil(math.log2(max(steps / first, 1)))))]
    wanted = [step for step in ([] if fresh else [0]) + doubling if step < steps] or [0]
    affordable = int(COST * passes / passes_a_look)  # samples of all looks
    count = min(len(wanted), max(1, affordable // most_samples))
    chosen = sorted({wanted[round(i * (len(wanted) - 1) / max(count - 1, 1))] for i in range(count)})
    if count == 1 and fresh:
        chosen = [wanted[len(wanted) // 2]]
    return Looks(tuple(chosen), min(most_samples, max(FEWEST_SAMPLES, affordable // count)))


def passes_a_look(parts: Parts, words: int, *, tokens: float, patches: int, chooses: bool, half: bool) -> float:
    """Forwards of one sample that a look costs for each of its samples, by the products it takes.

    Args:
        words: V, rows of the vocabulary.
        tokens: of a sample, visual ones included; the mean.
        patches: N, visual tokens of a sample.
        chooses: half of the samples go to the choice, which takes another forward and searches after each layer. Else
            there may be a forward that finds massive dimensions.
        half: the model's forward is in 16 bit, where a product costs a quarter of one in float32.
    """
    weights = sum(
        module.in_features * module.out_features
        for layer in parts.layers
        for module in layer.modules()
        if isinstance(module, nn.Linear)
    )
    width = parts.embeddings.weight.shape[1]
    search = min(patches, SEARCHED_PATCHES) * words * width * (4 if half else 1) / (weights * tokens)  # of one place
    testing, choosing = 1 + 2 * search, 2 + (len(parts.layers) + 2) * search
    return (testing + choosing) / 2 if chooses else 1 + testing


@dataclass
class GateState:
    """What a checkpoint keeps of the gate. JSON."""

    open: bool
    plan: dict[str, Any] | None = None  # the target that was chosen; None: the recipe's own
    steps_on: int = 0  # steps that had BASIC


@dataclass
class Gate:
    """Looks at the premise, chooses the target, and says whether BASIC is on.

    Every process calls ``look`` at the same steps; the main one measures, and the others take over what it found.
    """

    supervision: Supervision
    settings: SupervisionSection
    looks: Looks
    batches: Sequence[dict[str, Tensor]]  # of samples with pictures, on the host; none in processes that don't measure
    tokenizer: Any
    say: Say
    autocast: Callable[[], AbstractContextManager[Any]] | None
    processes: Processes
    state: GateState = field(init=False)

    def __post_init__(self) -> None:
        self.state = GateState(open=not self.settings.gate)

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on as a checkpoint left off; None: the run starts now."""
        if state is not None:
            self.state = GateState(**state)
            if self.state.plan is not None:
                self.supervision.use(TargetPlan.of(self.state.plan))

    def outlook(self) -> str:
        """What will be looked at, for the run's start."""
        when = ", ".join(str(step) for step in self.looks.steps)
        what = []
        if self.settings.gate:
            what.append("BASIC is off until its premise is shown to hold")
        if leaves_open(self.settings):
            what.append("the target is chosen by measurement")
        return f"{'; '.join(what)}: looks after step {when} and at each evaluation, on {self.looks.samples} samples"

    def summary(self, steps: int) -> str | None:
        """What came of it at the end of a run of so many steps; None where BASIC was never in question."""
        return f"BASIC was on in {self.state.steps_on:,} of {steps:,} steps" if self.settings.gate else None

    def due(self, step: int, *, evaluated: bool) -> bool:
        """Whether to look after so many steps.

        Args:
            evaluated: there was an evaluation after this step.
        """
        wanted = self.settings.gate or (leaves_open(self.settings) and self.state.plan is None)
        return wanted and self.supervision.active and (evaluated or step in self.looks.steps)

    def look(self, step: int) -> dict[str, Any] | None:
        """Measure, choose, open or shut; the record for the log, None where memory was short."""
        record, started = None, time.perf_counter()
        if self.processes.is_main:
            short = f"warning: step {step}: no look at BASIC's premise: not enough memory; it stays as it was"
            record = if_memory_allows(lambda: self._measure(step), self.autocast, lambda: self.say(short))
        self.restore(self.processes.from_main(asdict(self.state)))
        return None if record is None else {"gate": record | {"look_s": time.perf_counter() - started}}

    def _measure(self, step: int) -> dict[str, Any]:
        device, state = self.supervision.device, self.state
        batches = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in self.batches]
        testing = batches
        if leaves_open(self.settings) and (state.plan is None or not (self.settings.gate and state.open)):
            choosing = batches
            if scores_decide(self.settings):
                # The score of what was chosen by its score would be too good on the same samples.
                choosing, testing = batches[::2], batches[1::2]
            calibrate(self.supervision, choosing, self.tokenizer)
            state.plan = asdict(self.supervision.target_plan)
        record: dict[str, Any] = {"plan": state.plan}
        if self.settings.gate:
            record |= self.decide(step, refinement_curve(self.supervision, testing, self.tokenizer, each_layer=False))
        return record

    def decide(self, step: int, curve: RefinementCurve) -> dict[str, Any]:
        """Open or shut on what was measured; the numbers for the log."""
        was, self.state.open = self.state.open, curve.verdict == "holds"
        self.say(f"step {step}: {_words(was, self.state.open, curve)}")
        score = curve.score or [0.0]
        numbers = {"v": score[0], "target": score[-1], "gain": curve.gain, "samples": curve.samples}
        return {"open": self.state.open, "verdict": curve.verdict} | numbers


def make_gate(
    recipe: Recipe,
    loaded: Loaded,
    supervision: Supervision | None,
    data: Prepared,
    batches: Sequence[dict[str, Tensor]],
    schedule: Schedule,
    processes: Processes,
    say: Say,
) -> Gate | None:
    """The gate of a run; None where the recipe leaves nothing to measurement.

    Args:
        batches: what the refinement curve is measured on; none in processes that don't measure.
    """
    settings = recipe.supervision
    if supervision is None or not supervision.active or not (settings.gate or leaves_open(settings)):
        return None
    checkpointed, half = recipe.training.gradient_checkpointing, uses_autocast(recipe, supervision.device)
    report, (count, size) = data.report, curve_batches(recipe)
    tokens = float(report.lengths[report.has_image].mean())
    looks = plan_looks(
        schedule.steps,
        # Massive dimensions are the LLM's own, and a fresh projector shows them too.
        fresh=projector_is_fresh(recipe) and (settings.gate or scores_decide(settings)),
        most_samples=count * size,
        passes=schedule.samples_after(schedule.steps) * (3 if checkpointed else 2),
        passes_a_look=passes_a_look(
            loaded.parts,
            supervision.vocabulary.rows,
            tokens=tokens,
            patches=data.train.chat.tokens_per_image,
            chooses=scores_decide(settings),
            half=half,
        ),
    )
    autocast = autocast_of(recipe, supervision.device)
    enough = batches[: math.ceil(looks.samples / size)]
    return Gate(supervision, settings, looks, enough, loaded.tokenizer, say, autocast, processes)


def _words(was: bool, now: bool, curve: RefinementCurve) -> str:
    """What the gate did, on what numbers."""
    if now:
        return f"BASIC {'stays' if was else 'is'} on: its premise holds, {curve.comparison()}"
    doubt = "does not hold here" if curve.verdict == "fails" else "isn't shown here"
    return (
        f"BASIC is {'off again' if was else 'off'}: its premise {doubt}, {curve.comparison()}. The run trains as LLaVA "
        "does, so nothing is lost; supervision.gate: false trains with BASIC all the same"
    )
