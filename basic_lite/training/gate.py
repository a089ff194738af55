"""The gate: BASIC is on only where its premise is measured to hold, and its pull to lower the loss.

The premise is that v̂ is better than v, in the score of the refinement curve. A look measures both on samples with
pictures; the gate opens when the 95 % interval of the gain is above 0, and on other samples too: a run has many looks,
and one of them is right by chance. Then BASIC's pull is tried, and has to lower the loss (``pull``): a premise that
holds wasn't enough. The gate shuts when the interval of the gain no longer is above 0. While it is shut λ1 = λ2 = 0:
nothing is tapped, and the run is LLaVA's own. A look also chooses what the recipe leaves to measurement (layers, their
weights, massive dimensions), on other samples than those that the gain is measured on. The choice stays for as long
as the gate is open.

Not of the paper; the reasons are in docs/METHOD.md.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from basic_lite.console import Say
from basic_lite.data.prepare import Prepared
from basic_lite.errors import UserError
from basic_lite.model.audit import audit
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe, SupervisionSection
from basic_lite.resampling import LEAST_SAMPLES, Interval
from basic_lite.supervision import Supervision
from basic_lite.supervision.calibration import choose_target, leaves_open, moved, scores_decide, target_by_gains
from basic_lite.supervision.premise import RefinementCurve, SeenPatches, refinement_curve
from basic_lite.training.assembly import autocast_of, uses_autocast
from basic_lite.training.batches import Schedule
from basic_lite.training.bundle_files import Bundle
from basic_lite.training.gate_state import GateState, gate_words
from basic_lite.training.looks import COST, Looks, Trials, looks_of, shared_out
from basic_lite.training.processes import Processes
from basic_lite.training.pull import Pull
from basic_lite.training.recovery import first_samples, samples_in
from basic_lite.training.refinement_log import SAMPLES_PER_BATCH, curve_batches, if_memory_allows
from basic_lite.training.step import Autocast, TrainStep


@dataclass
class Gate:
    """Looks at the premise, chooses the target, and says whether BASIC is on.

    Every process calls ``look`` at the same steps; the main one measures, and the others take over what it found.
    """

    supervision: Supervision
    looks: Looks
    # Of samples with pictures, on the host; none in processes that don't measure. ``choosing`` choose the target.
    choosing: Sequence[dict[str, Tensor]]
    testing: Sequence[dict[str, Tensor]]  # decide; where scores choose, these are other samples
    again: Sequence[dict[str, Tensor]]  # give the second opinion before BASIC goes on; always other samples
    pull: Pull  # what is tried then, on samples that it isn't of
    trials: Trials  # what that may cost
    parted: bool  # every second sample of a look chooses, and the others decide; else all of them do both
    deciding: int  # how many of them decide, in any process; as many are asked again
    cost: float  # of the looks that are planned, and of all trials, as a share of the run's arithmetic
    limited: bool  # there are more, but they would cost too much
    tokenizer: Any
    say: Say
    autocast: Autocast
    processes: Processes
    state: GateState = field(init=False)

    def __post_init__(self) -> None:
        self.state = GateState(open=not self.settings.gate)

    @property
    def settings(self) -> SupervisionSection:
        """The recipe's section."""
        return self.supervision.settings

    def restore(self, state: dict[str, Any] | None, checkpoint: Bundle | None = None) -> None:
        """Go on as a checkpoint, or another process, says; None without a checkpoint: the run starts now.

        Raises:
            UserError: the checkpoint has no state of a gate, or a target of another model.
        """
        if state is not None:
            self.state = GateState(**state)
            if checkpoint is not None and self.settings.gate and self.state.open and not self.decides:
                # An earlier version asked no other samples, and needed fewer.
                self.state.open = False
                self.say(
                    "warning: BASIC is off from here: too few samples with pictures are left to look at its premise"
                )
            if self.state.plan is not None:
                where = "this run" if checkpoint is None else str(checkpoint.folder)
                self.supervision.use_saved(self.state.plan, where)
        elif checkpoint is not None:
            raise UserError(
                f"--resume: {checkpoint.folder} doesn't say whether BASIC was on, and this recipe leaves that to "
                "measurement; take another checkpoint with --checkpoint, or start a new run with name=…"
            )

    def outlook(self) -> list[str]:
        """What will be looked at, for the run's start."""
        when, choose, lines = ", ".join(str(step) for step in self.looks.steps), samples_in(self.choosing), []
        if self.settings.gate and not self.decides:
            return []  # ``basic_text`` has said that nothing can be decided
        if self.settings.gate:
            chosen = f"{choose} samples choose its target, {self.deciding} others" if self.parted else ""
            limited = "; a longer run would look at more" if self.limited else ""
            dear = f"; that costs up to {self.cost:.1%} of this run, since it is short" if self.cost > COST else ""
            if self.cost > 1:
                dear = "; the looks cost more than so short a run itself: supervision.enabled=false leaves them out"
            lines.append(
                f"BASIC's premise is looked at after step {when} and at each evaluation: "
                f"{chosen or f'{self.deciding} samples'} decide. Where they show it, {self.deciding} more are asked, "
                f"and BASIC's pull has to lower the loss; then BASIC goes on{limited}{dear}"
            )
        if leaves_open(self.settings):
            when = "at each look while BASIC is off" if self.settings.gate else f"after step {when}"
            until = "" if self.settings.gate else f"; until then it is made of {self.supervision.layers} layers"
            lines.append(
                f"BASIC's target is measured {when}, on {choose} samples{until if scores_decide(self.settings) else ''}"
            )
        return lines

    def summary(self, steps: int) -> str | None:
        """What came of it at the end of a run of so many steps; None where BASIC was never in question."""
        if not self.settings.gate:
            return None
        came = f"BASIC was on in {self.state.steps_on:,} of {steps:,} steps"
        if self.state.steps_on or not self.decides:
            return came
        if self.state.verdict == "fails":
            return f"{came}: its premise doesn't hold here"
        if self.state.refused is not None:
            return f"{came}: its premise held, and its pull wasn't seen to lower the loss (step {self.state.refused:,})"
        never = f"its premise was never shown on the {self.deciding} samples that decide and on as many others"
        more = "a longer run would look at more" if self.limited else "more pictures with a text would narrow the doubt"
        return f"{came}: {never}; {more}"

    @property
    def decides(self) -> bool:
        """Whether it says if the premise holds: it is asked, and has samples enough."""
        return self.settings.gate and self.deciding >= LEAST_SAMPLES

    def due(self, step: int, *, evaluated: bool) -> bool:
        """Whether to look after so many steps.

        Args:
            evaluated: there was an evaluation after this step.
        """
        wanted = self.decides if self.settings.gate else not self.state.chosen
        return wanted and (evaluated or step in self.looks.steps)

    @property
    def kept(self) -> range:
        """Samples of the next evaluation's curve whose layers a look will need: those that decide on a new target."""
        plan, settings = self.supervision.target_plan, self.settings
        known = settings.target_norm != "layer" or plan.massive is not None
        return self._numbers(1) if self._chooses and scores_decide(settings) and known else range(0)

    @property
    def _chooses(self) -> bool:
        """Whether the next look chooses the target."""
        return leaves_open(self.settings) and (not self.state.chosen or (self.settings.gate and not self.state.open))

    def look(self, step: int, seen: SeenPatches | None = None) -> dict[str, Any] | None:
        """Measure, choose, open or shut; the record for the log, None where memory was short.

        Args:
            seen: what the curve of this step's evaluation was made of, its ``kept`` samples with their layers; then no
                sample goes through the model again.
        """
        record, started = None, time.perf_counter()
        if self.processes.is_main:
            record = if_memory_allows(lambda: self._measure(step, seen), self.autocast, lambda: self._say_short(step))
        self.restore(self.processes.from_main(asdict(self.state)))
        return None if record is None else {"gate": record | {"look_s": time.perf_counter() - started}}

    def _say_short(self, step: int) -> None:
        samples = len(self.choosing[0]["input_ids"])
        self.say(
            f"warning: step {step}: no look at BASIC's premise: not enough memory for {samples} samples at once; BASIC "
            f"stays {'on' if self.state.open else 'off'}. A smaller training.micro_batch or "
            "supervision.refinement_batches helps; supervision.gate=false does without"
        )

    def _measure(self, step: int, seen: SeenPatches | None) -> dict[str, Any]:
        supervision, state, before = self.supervision, self.state, self.supervision.target_plan
        if self._chooses:
            by_score = scores_decide(self.settings) and not (step == 0 and self.looks.fresh)
            if seen is not None and seen.rows:
                gains = seen.curve(self._numbers(0)).layer_gains
                plan = target_by_gains(self.settings, gains, before.massive)
            else:
                plan = choose_target(supervision, self.choosing, self.tokenizer, by_score=by_score)
            supervision.use(plan)
            state.plan, state.chosen = asdict(plan), by_score or not scores_decide(self.settings)
            self.say(f"step {step}: BASIC's target: {plan.text(len(supervision.parts.layers))}")
        record: dict[str, Any] = {"plan": state.plan}
        if self.settings.gate:
            tested = self._tested(seen, changed=supervision.target_plan != before)
            record |= self.decide(step, tested, self.ask_again, lambda: self._try_pull(step))
        return record

    def _tested(self, seen: SeenPatches | None, *, changed: bool) -> RefinementCurve:
        """v and v̂ of the samples that decide; from ``seen``, where it has what is needed."""
        if seen is not None and not changed:
            return seen.curve(self._numbers(1))
        if seen is not None and seen.rows:
            return seen.with_target(self.supervision, self._numbers(1))
        return self._gain_on(self.testing)

    def _try_pull(self, step: int) -> Interval | None:
        """How the pull changes the loss; None where memory was short."""
        return if_memory_allows(
            self.pull.tried,
            nullcontext,
            lambda: self.say(
                f"warning: step {step}: BASIC's pull can't be tried: it takes the memory of a step; a smaller "
                "training.micro_batch helps"
            ),
        )

    def ask_again(self) -> RefinementCurve:
        """v and v̂ of the other samples."""
        return self._gain_on(self.again)

    def _gain_on(self, batches: Sequence[dict[str, Tensor]]) -> RefinementCurve:
        """v and v̂ of samples, from a forward of their own."""
        there = moved(batches, self.supervision.device)
        return refinement_curve(self.supervision, there, self.tokenizer, each_layer=False)

    def _numbers(self, first: int) -> range:
        """Which samples of an evaluation's curve choose (``first`` 0) or decide (1): the same as in any other look."""
        if not self.parted:
            return range(samples_in(self.testing))
        return range(first, samples_in(self.choosing) + samples_in(self.testing), 2)

    def decide(
        self,
        step: int,
        curve: RefinementCurve,
        again: Callable[[], RefinementCurve],
        tried: Callable[[], Interval | None],
    ) -> dict[str, Any]:
        """Open or shut on what was measured; the numbers for the log.

        Args:
            again: measures the same on other samples. It is asked where a gate that is shut would open.
            tried: how the pull changes the loss, None without memory; asked after ``again``. A pull that was refused is
                tried again when the run has come twice as far. Both are asked only for as long as the run's share for
                it lasts.
        """
        was, state, second, change = self.state.open, self.state, None, None
        verdict: str = curve.verdict
        goes_on = verdict == "holds"
        if goes_on and not was:
            # Not soon after a refused pull, and not past the run's share: see ``tried`` above.
            goes_on = step >= 2 * (state.refused or 0) and self.trials.left(state.asked)
            if goes_on:
                second = again()  # there may be no memory for it, and then nothing has changed
                state.asked += self.trials.again_passes
                verdict = "holds" if second.verdict == "holds" else "can't tell"
                if verdict == "holds":
                    change = tried()
                    state.asked += self.trials.passes
                goes_on = change is not None and change.high < 0
                if verdict == "holds":
                    state.refused = None if goes_on else step
        state.open, state.verdict = goes_on, verdict
        left = self.trials.left(state.asked)
        self.say(f"step {step}: {gate_words(was, state, curve, second, change, parted=self.parted, left=left)}")
        score = curve.score or [0.0]
        record = {"open": state.open, "verdict": state.verdict, "v": score[0], "target": score[-1]}
        record |= {"gain": curve.gain, "samples": curve.samples}
        record |= {} if second is None else {"gain_again": second.gain}
        return record | ({} if change is None else {"loss_change": change})


def make_gate(
    recipe: Recipe,
    loaded: Loaded,
    supervision: Supervision | None,
    data: Prepared,
    schedule: Schedule,
    processes: Processes,
    say: Say,
    train_step: TrainStep,
    micro_batch: Callable[[], int],
) -> Gate | None:
    """The gate of a run; None where the recipe leaves nothing to measurement.

    Args:
        micro_batch: how many samples a step takes at once now.
    """
    if supervision is None or not supervision.active:
        return None
    report, settings = data.report, recipe.supervision
    looks = looks_of(
        recipe,
        loaded.frontend,
        llm_weights=sum(part.parameters for part in audit(loaded.parts) if part.part == "LLM linears"),
        steps=schedule.steps,
        samples=schedule.samples_after(schedule.steps),
        tokens=float(report.lengths[report.has_image].mean()),
        half=uses_autocast(recipe, supervision.device),
    )
    if looks is None:
        return None
    # The score of what was chosen by its score would be too good on the same samples.
    parted = settings.gate and scores_decide(settings)
    most, there = settings.refinement_batches * SAMPLES_PER_BATCH, data.with_image
    if settings.gate:
        seen, deciding = shared_out(looks.samples, there, parted=parted)
        limited = seen < shared_out(most, there, parted=parted)[0]
    else:
        seen, deciding, limited = min(looks.samples, there), 0, False
    samples = data.samples_with_images(seen + deciding if processes.is_main else 0)
    if processes.is_main and settings.gate and len(samples) < seen + deciding:
        # Some broke since the check, and are dropped.
        seen, deciding = shared_out(looks.samples, len(samples), parted=parted)
    deciding = processes.from_main(deciding)
    halves = (samples[:seen:2], samples[1:seen:2]) if parted else (samples[:seen], samples[:seen])
    size = curve_batches(recipe)[1]
    choosing, testing, again = (data.collated(part, size) for part in (*halves, samples[seen:]))
    asked = [*testing, *again] if parted else again
    trials = looks.trials(again=deciding, pulling=samples_in(choosing), asked=samples_in(asked))
    image = loaded.parts.image_token_id
    pulling, asked = first_samples(choosing, trials.pulling, image), first_samples(asked, trials.asked, image)
    return Gate(
        supervision,
        looks,
        choosing,
        testing,
        again,
        Pull(train_step, pulling, asked, micro_batch),
        trials,
        parted=parted,
        deciding=deciding,
        cost=looks.cost(seen) + (trials.cost if settings.gate else 0),
        limited=limited,
        tokenizer=loaded.tokenizer,
        say=say,
        autocast=autocast_of(recipe, supervision.device),
        processes=processes,
    )
