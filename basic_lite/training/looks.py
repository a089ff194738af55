"""When a run looks at BASIC's premise, and on how many samples."""

import math
from dataclasses import dataclass, replace

from basic_lite.model.frontend import Frontend
from basic_lite.recipe.schema import Recipe
from basic_lite.resampling import LEAST_SAMPLES
from basic_lite.supervision.calibration import leaves_open, scores_decide
from basic_lite.supervision.premise import SEARCHED_PATCHES
from basic_lite.training.assembly import projector_is_fresh
from basic_lite.training.refinement_log import SAMPLES_PER_BATCH

# The first look at a fresh projector: before that its output is noise. Later looks double their distance.
FIRST_LOOK = 16
# A gate costs at most this share of a run. Of the run's arithmetic PLANNED is for the looks between evaluations, and
# ASKED for what is asked before BASIC goes on. A look at an evaluation takes the curve that is measured there, and
# needs little.
COST, PLANNED, ASKED = 0.01, 0.005, 0.004
# Half of them may choose the target, and as many others as an interval needs decide.
FEWEST_SAMPLES = 2 * LEAST_SAMPLES
# Forwards of one sample that a trial of BASIC's pull costs: two forwards and backwards for its gradient, BASIC's own
# products not counted, and the loss before and after.
PULLING, LOSSES = 4, 2
# Beside a model in 16 bit, a product in float32 takes this many times as long: 2 to 8 by NVIDIA's data sheets.
FLOAT32_COST = 4


@dataclass(frozen=True)
class Looks:
    """When the gate looks, and at how many samples each time."""

    steps: tuple[int, ...]  # after so many steps; 0: before the first
    samples: int
    fresh: bool  # the projector's scores before the first step are noise
    passes: float  # forwards of one sample that a look costs for each of its samples
    deciding_passes: float  # … for each of those that are only asked whether v̂ is better than v
    run_passes: float  # … that the run's arithmetic is worth

    def cost(self, samples: int) -> float:
        """The share of the run's arithmetic that the looks take with so many samples each."""
        return len(self.steps) * samples * self.passes / self.run_passes

    def passes_after(self, step: int) -> float:
        """Forwards of one sample that the looks after a step cost, and the one before the first."""
        return self.passes * self.samples * sum(look >= step for look in self.steps)

    def trials(self, *, again: int, pulling: int, asked: int) -> "Trials":
        """What is asked before BASIC goes on: the premise on other samples, and then what its pull does to the loss.

        The pull of a young projector may be refused, so it should be tried twice at least. In a short run it is tried
        on fewer samples, but on as many as an interval needs, and once, whatever that costs.

        Args:
            again: samples of the second opinion.
            pulling: samples that may give the pull's gradient.
            asked: others that may be asked for their loss.
        """
        affordable, second = ASKED * self.run_passes, again * self.deciding_passes
        whole, least = PULLING * pulling + LOSSES * asked, (min(pulling, LEAST_SAMPLES // 2), min(asked, LEAST_SAMPLES))
        for times in (2, 1):
            share = min(1.0, (affordable / times - second) / max(whole, 1))
            sizes = int(share * pulling), int(share * asked)
            if sizes[0] >= least[0] and sizes[1] >= least[1]:
                break
        else:
            sizes = least
        passes = PULLING * sizes[0] + LOSSES * sizes[1]
        return Trials(*sizes, second, passes, max(affordable, second + passes), self.run_passes)

    def full_trials(self, *, parted: bool) -> "Trials":
        """Those of a run with samples enough; ``parted``: half of a look's samples choose the target."""
        part = self.samples // 2 if parted else self.samples
        return self.trials(again=part, pulling=part, asked=2 * part if parted else part)


@dataclass(frozen=True)
class Trials:
    """On how many samples BASIC's pull is tried, and what a run may spend on that. Costs are forwards of one sample."""

    pulling: int  # samples that give its gradient
    asked: int  # samples whose loss is measured
    again_passes: float  # of the second opinion, which comes first
    passes: float  # of the trial
    most_passes: float  # of all of them in a run
    run_passes: float

    @property
    def cost(self) -> float:
        """The most that they take, as a share of the run's arithmetic."""
        return self.most_passes / self.run_passes

    def left(self, spent: float) -> bool:
        """Whether there is enough for one more."""
        return spent + self.again_passes + self.passes <= self.most_passes


def shared_out(most: int, there: int, *, parted: bool) -> tuple[int, int]:
    """How many samples a look takes, and how many of them decide.

    As many others are left for the second opinion, which is asked before BASIC goes on.

    Args:
        most: samples of a look where enough are there.
        there: samples with pictures.
        parted: half of a look's samples choose the target, and don't decide.
    """
    parts = 2 if parted else 1
    deciding = min(most // parts, there // (parts + 1))
    return parts * deciding, deciding


def plan_looks(
    steps: int, *, fresh: bool, most_samples: int, passes: float, passes_a_look: float, passes_a_decision: float = 0.0
) -> Looks:
    """Looks after 0 (unless the projector is fresh), 16, 32, 64 … steps, as many as ``PLANNED`` allows.

    With too little for all of them, some are left out evenly. With too little for one, it has fewer samples, but
    ``FEWEST_SAMPLES`` of them at least, whatever they cost.

    Args:
        steps: of the run.
        fresh: the projector starts untrained.
        most_samples: samples of a look where cost is no matter.
        passes: forwards of one sample that the run's arithmetic is worth.
        passes_a_look: forwards of one sample that a look costs for each of its samples.
        passes_a_decision: … for each of those that are only asked whether v̂ is better than v.
    """
    first = min(FIRST_LOOK, max(1, steps // 4))
    doubling = [first * 2**i for i in range(max(1, math.ceil(math.log2(max(steps / first, 1)))))]
    wanted = [step for step in ([] if fresh else [0]) + doubling if step < steps] or [0]
    affordable = int(PLANNED * passes / passes_a_look)  # samples of all looks
    count = min(len(wanted), max(1, affordable // most_samples))
    chosen = sorted({wanted[round(i * (len(wanted) - 1) / max(count - 1, 1))] for i in range(count)})
    if count == 1 and fresh:
        chosen = [wanted[len(wanted) // 2]]
    samples = min(most_samples, max(FEWEST_SAMPLES, affordable // count))
    return Looks(tuple(chosen), samples, fresh, passes_a_look, passes_a_decision, passes)


def looks_of(
    recipe: Recipe, frontend: Frontend, *, llm_weights: float, steps: int, samples: int, tokens: float, half: bool
) -> Looks | None:
    """The looks of a run with BASIC; None where the recipe leaves nothing to measurement.

    Args:
        llm_weights: of the linear layers of the LLM's decoder.
        steps: of the run.
        samples: that it trains on, each pass over the data counted.
        tokens: of a sample with a picture, visual ones included; the mean.
        half: the model's forward is in 16 bit.
    """
    settings = recipe.supervision
    if not (settings.gate or leaves_open(settings)):
        return None
    # Massive dimensions are the LLM's own, and a fresh projector shows them too; of scores it shows noise.
    fresh = projector_is_fresh(recipe) and (settings.gate or scores_decide(settings))
    text = frontend.config.text_config
    # The search through the vocabulary is never in 16 bit.
    one_row = text.vocab_size * text.hidden_size * (FLOAT32_COST if half else 1) / (llm_weights * tokens)
    search = min(frontend.tokens_per_image, SEARCHED_PATCHES) * one_row  # of one place
    looks = plan_looks(
        steps,
        fresh=fresh,
        most_samples=max(1, settings.refinement_batches * SAMPLES_PER_BATCH),
        # A forward and a backward. Recomputing layers would be a third, but that may change when the run is resumed.
        passes=2 * samples,
        passes_a_look=passes_a_look(search, layers=frontend.layer_count, chooses=scores_decide(settings)),
        passes_a_decision=passes_a_decision(search),
    )
    if fresh and not settings.gate and settings.target_norm == "layer":
        looks = replace(looks, steps=(0, *looks.steps))  # for the massive dimensions alone
    return looks


def passes_a_look(search: float, *, layers: int, chooses: bool) -> float:
    """Forwards of one sample that a look costs for each of its samples, by the products it takes.

    Args:
        search: for the nearest words of a sample's visual tokens at one place, in forwards of one sample.
        layers: L.
        chooses: half of the samples go to the choice, which takes another forward and searches after each layer. Else
            there may be a forward that finds massive dimensions.
    """
    testing, choosing = passes_a_decision(search), 2 + (layers + 2) * search
    return (testing + choosing) / 2 if chooses else 1 + testing


def passes_a_decision(search: float) -> float:
    """Forwards of one sample that a sample costs that is only asked whether v̂ is better than v."""
    return 1 + 2 * search
