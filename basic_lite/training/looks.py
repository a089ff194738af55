"""When a run looks at BASIC's premise, and on how many samples."""

import math
from dataclasses import dataclass

from torch import nn

from basic_lite.model.parts import Parts
from basic_lite.supervision.interval import LEAST_SAMPLES
from basic_lite.supervision.premise import SEARCHED_PATCHES

# The first look at a fresh projector: before that its output is noise. Later looks double their distance.
FIRST_LOOK = 16
# A gate's looks cost at most this share of the run's arithmetic, apart from those of evaluations.
COST = 0.01
# Half of them may choose the target, and as many others as an interval needs decide.
FEWEST_SAMPLES = 2 * LEAST_SAMPLES
# Beside a model in 16 bit, a product in float32 takes this many times as long: 2 to 8 by NVIDIA's data sheets.
FLOAT32_COST = 4


@dataclass(frozen=True)
class Looks:
    """When the gate looks, and at how many samples each time."""

    steps: tuple[int, ...]  # after so many steps; 0: before the first
    samples: int


def plan_looks(steps: int, *, fresh: bool, most_samples: int, passes: float, passes_a_look: float) -> Looks:
    """Looks after 0 (unless the projector is fresh), 16, 32, 64 … steps, as many as ``COST`` allows.

    With too little for all of them, some are left out evenly. With too little for one, it has fewer samples, but
    ``FEWEST_SAMPLES`` of them at least, whatever they cost.

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
        half: the model's forward is in 16 bit; the search through the vocabulary never is.
    """
    weights = sum(
        module.in_features * module.out_features
        for layer in parts.layers
        for module in layer.modules()
        if isinstance(module, nn.Linear)
    )
    width = parts.embeddings.weight.shape[1]
    search = (
        min(patches, SEARCHED_PATCHES) * words * width * (FLOAT32_COST if half else 1) / (weights * tokens)
    )  # of one place
    testing, choosing = 1 + 2 * search, 2 + (len(parts.layers) + 2) * search
    return (testing + choosing) / 2 if chooses else 1 + testing
