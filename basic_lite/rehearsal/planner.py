"""The fastest plan that fits: micro-batch × recomputed layers × what rests on the host.

A few steps are rehearsed. Memory grows evenly with the samples of a micro-batch and falls evenly with the recomputed
layers, down to what a step needs with all of them, so those few predict all others. Time is counted
(``counts.MicroBatchTime``). The plan that is taken has been rehearsed itself.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from basic_lite.cards import CARDS, Card
from basic_lite.data.check import DataReport
from basic_lite.recipe.rules import changed_recipe
from basic_lite.rehearsal.advice import ENOUGH_LESS
from basic_lite.rehearsal.batch import Shape
from basic_lite.rehearsal.counts import MicroBatchTime
from basic_lite.rehearsal.look import samples_at_once
from basic_lite.rehearsal.step import Rehearsal, Rehearser
from basic_lite.sizes import GIB
from basic_lite.training import plan as plans
from basic_lite.training.plan import Plan, with_given

# A rehearsed peak is the real one within 2 %.
ROOM = 0.98
# Plans whose times differ by less are equally fast: the table of plans shows two places after the point.
ALIKE = 0.005
# Rehearsals of plans that were predicted to fit, at most.
MOST_CHECKS = 6


def smallest_cards(needed_bytes: int) -> list[Card]:
    """The cards of the table that a plan fits, those with the least memory; none: it fits none."""
    enough = [card for card in CARDS if needed_bytes <= card.gib * GIB * ROOM]
    return [card for card in enough if card.gib == min(one.gib for one in enough)]


@dataclass(frozen=True)
class Option:
    """A plan with what it needs and how long a sample takes; bytes, seconds.

    Attributes:
        rehearsed: False: its bytes follow from rehearsals of other plans.
    """

    plan: Plan
    needed_bytes: int
    host_bytes: int
    seconds: float
    rehearsed: bool


@dataclass(frozen=True)
class _Corner:
    """Peaks of a micro-batch's step with none, half and all of the layers recomputed."""

    none: int
    half: int
    every: int

    def between(self, other: "_Corner", share: float) -> "_Corner":
        ours, theirs = vars(self).values(), vars(other).values()
        return _Corner(*(round(a + (b - a) * share) for a, b in zip(ours, theirs, strict=True)))


def best_of(
    plans: Iterable[Plan], budget_bytes: int, needed: Callable[[Plan], int], seconds: Callable[[Plan], float]
) -> Plan | None:
    """The fastest plan that fits; of those that are as fast, the one that needs least. None: none fits.

    Args:
        plans: the fastest first, those that have something on the host last.
    """
    fitting = (plan for plan in plans if needed(plan) <= budget_bytes)
    first = next(fitting, None)
    if first is None:
        return None
    longest = (1 + ALIKE) * seconds(first)
    as_fast = itertools.takewhile(lambda plan: plan.on_host == first.on_host and seconds(plan) <= longest, fitting)
    return min([first, *as_fast], key=needed)


class Planner:
    """Plans of one recipe on one machine."""

    def __init__(
        self,
        rehearser: Rehearser,
        shape: Shape,
        card: Card,
        *,
        time_shape: Shape | None = None,
        given: frozenset[str] = frozenset(),
        processes: int = 1,
    ) -> None:
        """
        Args:
            shape: of a micro-batch of the longest samples.
            card: its ceilings decide how long a plan takes.
            time_shape: of a mean sample; None: the longest.
            given: keys of a plan that the recipe has the say on.
            processes: how many share a step.
        """
        self.recipe, self.frontend, self.machine = rehearser.recipe, rehearser.frontend, rehearser.machine
        self.shape, self.card, self.given, self.processes = shape, card, given, processes
        self.layers = self.frontend.layer_count
        self.own = Plan.of(self.recipe, self.layers)
        self._rehearsers = {self.recipe.model.tower_on_host: rehearser}
        self.time = MicroBatchTime(self.recipe, self.frontend, self.machine, time_shape or shape)
        # What rests on the host is for where no other plan fits: how fast the copies are is known last.
        self.plans = self._fastest_first(card)
        sizes = sorted({plan.micro_batch for plan in self.plans})
        # The two micro-batches whose steps predict those of the others.
        self._sizes = sizes[0], next((n for n in sizes if n >= 4 * sizes[0]), sizes[-1])
        self._seen: dict[Plan, Rehearsal] = {}
        self._corners: dict[int, _Corner] = {}
        self._shifts: dict[Plan, int] = {}  # plan with 0 recomputed layers → what a check has corrected

    @classmethod
    def on_data(
        cls,
        rehearser: Rehearser,
        report: DataReport,
        card: Card,
        given: frozenset[str] = frozenset(),
        processes: int = 1,
    ) -> "Planner":
        """Plans for the longest samples that there are, timed with the mean one."""
        longest, mean = (make(rehearser.recipe, rehearser.frontend, report) for make in (Shape.longest, Shape.mean))
        return cls(rehearser, longest, card, time_shape=mean, given=given, processes=processes)

    def rehearse(self, plan: Plan) -> Rehearsal:
        """A step of the plan, on the longest samples."""
        if plan not in self._seen:
            if plan.tower_on_host not in self._rehearsers:
                changed = changed_recipe(self.recipe, {plans.TOWER: plan.tower_on_host})
                self._rehearsers[plan.tower_on_host] = Rehearser(changed, self.frontend, self.machine)
            total = self.recipe.training.global_batch // self.processes
            shape = replace(self.shape, samples=plan.micro_batch, accumulation=max(total // plan.micro_batch, 1))
            offload = plan.offload_activations
            rehearser = self._rehearsers[plan.tower_on_host]
            self._seen[plan] = rehearser.rehearse(shape, recomputed=plan.recomputed, offload=offload)
        return self._seen[plan]

    def option(self, plan: Plan) -> Option:
        """What is known of a plan without another rehearsal."""
        seen = self._seen.get(plan)
        host = self._host(plan) if seen is None else seen.host_bytes
        seconds = self.time.sample_seconds(plan, self.card)
        return Option(plan, self._needed(plan), host, seconds, seen is not None)

    def _needed(self, plan: Plan) -> int:
        seen = self._seen.get(plan)
        return self._predicted(plan) if seen is None else seen.needed_bytes

    def fastest(self, budget_bytes: int) -> Option | None:
        """The fastest plan that fits (``best_of``), rehearsed; None: none does."""
        for _ in range(MOST_CHECKS):
            found = self._best_of(self.plans, self.card, budget_bytes)
            if found is None:
                # What is predicted may be a little too much, so the one that needs least has the last word.
                least = self.leanest()
                return least if least.needed_bytes <= budget_bytes else None
            if found in self._seen:
                return self.option(found)
            row, predicted = replace(found, recomputed=0), self._needed(found)
            self._shifts[row] = self._shifts.get(row, 0) + self.rehearse(found).needed_bytes - predicted
        seen = (plan for plan in self.plans if plan in self._seen and self._needed(plan) <= budget_bytes)
        best = next(seen, None)
        return None if best is None else self.option(best)

    @property
    def careful(self) -> Plan:
        """One sample at a time, every layer recomputed, as far as the recipe leaves that open."""
        return with_given(Plan(1, self.layers, self.layers), self.recipe, self.given)

    def after(self, failed: Plan) -> Plan | None:
        """The fastest plan that needs clearly less than one that ran out of memory; None: none does.

        Its micro-batch divides the failed one's, so that batches can be cut into parts, and the tower stays where it
        is. A step that was to fit and didn't is followed by one of nine tenths, or by the one that needs least.
        """
        enough = int(ENOUGH_LESS * self.rehearse(failed).needed_bytes)
        possible = [
            plan
            for plan in self.plans
            if failed.micro_batch % plan.micro_batch == 0 and plan.tower_on_host == failed.tower_on_host
        ]
        fitting = next((plan for plan in possible if self._needed(plan) <= enough), None)
        least = min(possible, key=self._needed)
        return fitting or (least if self._needed(least) < self._needed(failed) else None)

    def leanest(self) -> Option:
        """The plan that needs least, rehearsed; for where none fits."""
        plan = min(self.plans, key=self._needed)
        self.rehearse(plan)
        return self.option(plan)

    def others(self, budget_bytes: int) -> list[Option]:
        """For each micro-batch its fastest plan that fits, and one with something on the host that is faster than all.

        The fastest first.
        """
        found: dict[int, Plan] = {}  # by micro-batch; 0: on the host
        for plan in self.plans:
            if self._needed(plan) <= budget_bytes:
                found.setdefault(0 if plan.on_host else plan.micro_batch, plan)
        options = sorted(map(self.option, found.values()), key=lambda option: option.seconds)
        return [option for place, option in enumerate(options) if place == 0 or not option.plan.on_host]

    def on(self, card: Card, *, own: bool) -> Plan | None:
        """The fastest plan that fits a card of the table (``best_of``), by what is predicted for it; None: none does.

        Args:
            own: only the recipe's own plan counts.
        """
        budget_bytes = int(card.gib * GIB * ROOM)
        if own:
            self.rehearse(self.own)
        plans = [self.own] if own else self._fastest_first(card)
        return self._best_of(plans, card, budget_bytes)

    def _best_of(self, plans: Iterable[Plan], card: Card, budget_bytes: int) -> Plan | None:
        return best_of(plans, budget_bytes, self._needed, lambda plan: self.time.sample_seconds(plan, card))

    def _fastest_first(self, card: Card) -> list[Plan]:
        def place(plan: Plan) -> tuple[bool, float, int]:
            return plan.on_host, self.time.sample_seconds(plan, card), plan.micro_batch

        return sorted(self._possible(), key=place)

    def _possible(self) -> set[Plan]:
        """Every plan that the recipe leaves room for."""
        share = self.recipe.training.global_batch // self.processes
        sizes = [n for n in range(1, share + 1) if share % n == 0]
        moves = (False, True) if self.machine.cuda else (False,)
        every = itertools.product(sizes, range(self.layers + 1), [self.layers], moves, moves)
        plans = {with_given(Plan(*one), self.recipe, self.given) for one in every}
        return {plan for plan in plans if plan.recomputed or not plan.offload_activations}

    def _host(self, plan: Plan) -> int:
        """Pinned memory is handed out in powers of two."""
        each = plan.micro_batch * self.time.input_bytes(self.shape)
        inputs = plan.recomputed * (1 << (each - 1).bit_length()) if plan.offload_activations else 0
        return inputs + (self.time.tower_bytes if plan.tower_on_host else 0)

    def _predicted(self, plan: Plan) -> int:
        """Bytes that a plan needs, from rehearsals of others."""
        corner = self._corner(plan.micro_batch)
        falls = (corner.none - corner.half) / max(self.layers // 2, 1)
        floor = corner.every
        if plan.offload_activations:
            inputs = plan.micro_batch * self.time.input_bytes(self.shape)
            falls, floor = falls + inputs, floor - self._spared(plan.micro_batch)
        step = max(round(corner.none - falls * plan.recomputed), floor)
        most = max(step, self._look(plan.micro_batch)) + self.machine.allowance_bytes
        resting = self.time.tower_bytes if plan.tower_on_host != self.own.tower_on_host else 0
        most += -resting if plan.tower_on_host else resting
        return most + self._shifts.get(replace(plan, recomputed=0), 0)

    def _corner(self, samples: int) -> _Corner:
        low, high = self._sizes
        for size in (low, high):
            if size not in self._corners:
                own = replace(self.own, micro_batch=size, offload_activations=False)
                plans = (replace(own, recomputed=count) for count in (0, self.layers // 2, self.layers))
                self._corners[size] = _Corner(*(self.rehearse(plan).peak_bytes for plan in plans))
        if low == high:
            return self._corners[low]
        return self._corners[low].between(self._corners[high], (samples - low) / (high - low))

    def _spared(self, samples: int) -> int:
        """Bytes that leave the card when the inputs of all layers do; the peak may then lie outside of the layers."""
        most = self._sizes[-1]
        every = replace(self.own, micro_batch=most, recomputed=self.layers, offload_activations=False)
        moved = self.rehearse(replace(every, offload_activations=True))
        return (self.rehearse(every).peak_bytes - moved.peak_bytes) * samples // most

    def _look(self, samples: int) -> int:
        """Bytes of a look at the premise."""
        low, high = (self._looked(size) for size in self._sizes)
        if low is None or high is None:
            return 0
        if low[0] == high[0]:
            return high[1]
        at_once = samples_at_once(self.recipe, samples)
        return round(low[1] + (high[1] - low[1]) * (at_once - low[0]) / (high[0] - low[0]))

    def _looked(self, samples: int) -> tuple[int, int] | None:
        own = replace(self.own, micro_batch=samples, offload_activations=False, recomputed=self.layers)
        look = self.rehearse(own).look
        return None if look is None else (look.samples, look.peak_bytes)
