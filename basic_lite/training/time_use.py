"""Where a run's time goes: some steps are measured part by part, and the key that would change most is named."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

from basic_lite.console import Say
from basic_lite.cores import usable_cores
from basic_lite.model.parts import Parts
from basic_lite.recipe.schema import DataSection, Recipe
from basic_lite.training import breakdown as step_part
from basic_lite.training.breakdown import Breakdown
from basic_lite.training.differences import FREE
from basic_lite.training.log import RunLog
from basic_lite.training.progress import MEASURED, SHORT_S, WARM_UP

# Steps that are measured in a row: soon after those that ``Pace`` takes, and again after so many.
STEPS, AGAIN_AFTER = 3, 500
DATA, TOWER, FORWARD, BACKWARD = "waiting for data", "tower", "LLM forward", "backward"
BASIC, OPTIMIZER, IDLE = "BASIC", "optimizer", "idle"
SAVING, EVALUATING, ANSWERING = "saving", "evaluating", "answering"
# A part of the breakdown → the part that a run logs. Any other is BASIC's.
PARTS = {
    step_part.DATA: DATA,
    step_part.VISION: TOWER,
    step_part.OTHER: FORWARD,
    step_part.PROJECTOR: FORWARD,
    step_part.LLM: FORWARD,
    step_part.LM_LOSS: FORWARD,
    step_part.LOSS_BACKWARD: BACKWARD,
    step_part.LLM_BACKWARD: BACKWARD,
    step_part.PROJECTOR_BACKWARD: BACKWARD,
    step_part.OPTIMIZER: OPTIMIZER,
    step_part.BETWEEN: IDLE,
    SAVING: SAVING,
    EVALUATING: EVALUATING,
    ANSWERING: ANSWERING,
}
# Shares of a step from which on a part is worth a change.
WORTH = {DATA: 0.05, SAVING: 0.05, EVALUATING: 0.1, ANSWERING: 0.1, IDLE: 0.1, OPTIMIZER: 0.1, BASIC: 0.1}


class TimeUse:
    """Measures some of a run's steps, and how long all of its saving, evaluating and answering takes.

    Only steps that are measured mark moments. Nothing in them waits for a GPU: it is waited for once before and once
    after them. No result depends on it.
    """

    def __init__(
        self, breakdown: Breakdown, parts: Parts, recipe: Recipe, log: RunLog, say: Say, *, first: int, last: int
    ) -> None:
        """
        Args:
            breakdown: the clock around BASIC's operations; it doesn't run yet.
            first: steps done before this program began.
            last: of the run.
        """
        self.breakdown, self.parts, self.recipe, self.log, self.say = breakdown, parts, recipe, log, say
        self.first, self.last = first, last
        self._watching = ExitStack()
        self._began, self._from = 0.0, 0  # of the steps that are being measured
        self._apart = dict.fromkeys((SAVING, EVALUATING, ANSWERING), 0.0)  # seconds, of the whole run
        self._said: str | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A context around one turn of the loop: a step, with what comes before the next one."""
        place = number - self.first - WARM_UP - MEASURED - 1
        if place >= 0 and place % AGAIN_AFTER == 0 and number + STEPS - 1 <= self.last:
            self._start(number)
        self.breakdown.base(step_part.BETWEEN)
        yield
        if self.breakdown.running and number == self._from + STEPS - 1:
            self._finish(number)

    def reading(self) -> AbstractContextManager[None]:
        """A context around the wait for the next step's data."""
        return self._base(step_part.DATA)

    @contextmanager
    def apart(self, what: str) -> Iterator[Callable[[], float]]:
        """A context around what isn't a step's own: ``SAVING``, ``EVALUATING`` or ``ANSWERING``.

        It may run the model, whose parts aren't timed then. Given is what tells the seconds since it began, and after
        it those that it took.
        """
        started, taken = time.perf_counter(), list[float]()
        with self._base(what), self.breakdown.paused():
            yield lambda: taken[0] if taken else time.perf_counter() - started
        taken.append(time.perf_counter() - started)
        self._apart[what] += taken[0]

    def drop(self) -> None:
        """Forget the steps that are being measured: one of them is made again."""
        self._watching.close()
        self.breakdown.stop()

    def finish(self, step: int, seconds: float) -> None:
        """Log what the run spent on saving, evaluating and answering, of all its ``seconds``."""
        apart = {f"{what}_s": s for what, s in self._apart.items()}
        self.log.write(step, {"time": {"first": self.first, "whole_s": seconds, **apart}})
        parts_s = {"steps": max(seconds - sum(self._apart.values()), 0.0), **self._apart}
        line, key = time_text(parts_s, self.recipe, steps=self.last, on_gpu=self.breakdown.clock.device.type == "cuda")
        if key and key != self._said and seconds >= SHORT_S:
            self.say(f"time of the run: {line}")

    @contextmanager
    def _base(self, name: str) -> Iterator[None]:
        self.breakdown.base(name)
        yield
        self.breakdown.base(step_part.BETWEEN)

    def _start(self, number: int) -> None:
        self._from = number
        self.breakdown.clock.wait()
        self._watching.enter_context(self.breakdown.watching(self.parts, basic=True))
        self._began = time.perf_counter()
        self.breakdown.start(step_part.BETWEEN)

    def _finish(self, number: int) -> None:
        taken = self.breakdown.take()
        seconds = time.perf_counter() - self._began
        self.drop()
        parts_s = dict.fromkeys([*dict.fromkeys(PARTS.values()), BASIC], 0.0)
        for part, ms in taken.items():
            parts_s[PARTS.get(part, BASIC)] += 1e-3 * ms / STEPS
        step_s = seconds / STEPS - sum(parts_s[what] for what in self._apart)
        # Three steps may have had none of it, or all of it: what a step has of it is the mean so far.
        parts_s |= {what: total / (number - self.first) for what, total in self._apart.items()}
        steps = {"first": self._from, "last": number}
        self.log.write(number, {"time": {"steps": steps, "step_s": step_s, "parts_s": parts_s}})
        line, key = time_text(parts_s, self.recipe, steps=self.last, on_gpu=self.breakdown.clock.device.type == "cuda")
        if step_s * (self.last - self.first) >= SHORT_S and key != self._said:
            self.say(f"time of steps {self._from} to {number}, {step_s:.2g} s each: {line}")
            self._said = key


def time_text(
    parts_s: Mapping[str, float], recipe: Recipe, *, steps: int, on_gpu: bool, cores: int | None = None
) -> tuple[str, str]:
    """The shares in one line that ends with what to change; and the key that it names, empty where there is none.

    "pictures" stands for a key where smaller picture files are what would help.

    Args:
        parts_s: seconds of a step by part.
        steps: of the run; a key that is as large as that already has nothing to give.
        cores: that this process may use; None: asked for.
    """
    whole = sum(parts_s.values()) or 1.0
    shares = {part: seconds / whole for part, seconds in parts_s.items()}
    text = ", ".join(f"{part} {share:.0%}" for part, share in shares.items() if share >= 0.005)
    who = "the GPU" if on_gpu else "the training"
    training = recipe.training
    once = (training.eval_every or steps) >= steps
    seldom = {SAVING: training.save_every >= steps, EVALUATING: once}
    worth = {part: least for part, least in WORTH.items() if not seldom.get(part)}
    over = {part: shares.get(part, 0.0) for part, least in worth.items() if shares.get(part, 0.0) >= least}
    if not over:
        # It names no key to change: only more memory would change it, and the planner knows how much there is.
        again = "; the backward computes layers again, to save memory: training.plan=auto does as little of it as fits"
        saves = training.gradient_checkpointing and training.plan != "auto"
        return f"{text}; nothing waits{again if saves else ''}", ""
    part = max(over, key=lambda name: over[name])
    found, key = _change(part, shares, recipe, who, cores or usable_cores())
    later = "" if key in FREE or key == "pictures" else " in the next run (this one keeps it)"
    return f"{text}; {found}{later}", key


def _change(part: str, shares: Mapping[str, float], recipe: Recipe, who: str, cores: int) -> tuple[str, str]:
    """What a part's share means, and the key that changes it."""
    share, training, supervision = shares[part], recipe.training, recipe.supervision
    if part == DATA:
        return _faster_pictures(share, recipe.data, who, cores)
    if part == SAVING:
        fewer = math.ceil(training.save_every * share / 0.02 / 10) * 10
        return f"saving takes {share:.0%}: set training.save_every={fewer}", "training.save_every"
    if part == EVALUATING:
        every = 2 * (training.eval_every or 1)
        what = f"evaluating and looking at the premise take {share:.0%}: set training.eval_every={every}"
        return what, "training.eval_every"
    if part == ANSWERING:
        fewer = max(1, training.eval_generate // 2)
        what = f"answering held-out questions takes {share:.0%}: set training.eval_generate={fewer}"
        return what, "training.eval_generate"
    if part == OPTIMIZER:
        what = f"the optimizer takes {share:.0%}: set training.global_batch higher, for fewer steps"
        return what, "training.global_batch"
    if part == BASIC:
        drawn = supervision.sds_tokens is None and supervision.lambda_sds > 0
        key = "supervision.sds_tokens" if drawn else "supervision.every_n_steps"
        less = "supervision.sds_tokens=64" if drawn else f"supervision.every_n_steps={supervision.every_n_steps + 1}"
        return f"BASIC takes {share:.0%}: set {less}", key
    return f"{who} waits {share:.0%} between steps: set training.log_every higher", "training.log_every"


def _faster_pictures(share: float, data: DataSection, who: str, cores: int) -> tuple[str, str]:
    """Workers that would keep up: with none the reading itself is what is waited for, else they are too few."""
    rest = max(1 - share, 0.05)
    wanted = math.ceil(share / rest) if data.workers == 0 else math.ceil(data.workers / rest)
    waits = f"{who} waits {share:.0%} for pictures"
    if min(wanted, cores) > data.workers:
        return f"{waits}: set data.workers={min(wanted, cores)}", "data.workers"
    waits = f"{waits}, and {data.workers} workers use the {cores} cores there are"
    if data.jpeg_draft:
        return f"{waits}: make the picture files smaller", "pictures"
    return f"{waits}: set data.jpeg_draft=true for large JPEGs", "data.jpeg_draft"
