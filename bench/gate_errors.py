"""How often the gate opens where v̂ is no better than v: ``python -m bench.gate_errors``, some ten minutes.

Made looks go through the real choice, interval and verdict. A visual token is nearest to a word of its own text, or of
another one, with a chance that differs between samples and is the same at v and after each layer: the true gain is 0.
v̂ is one layer that was fixed beforehand. Or it is chosen among 30 by the scores of all samples, which also decide. Or,
as the gate does it, every second sample chooses, and the others decide. With an exact interval 2.5 of 100 would open.

A run looks several times, at the same samples. So a run of seven looks is made too: a layer is better than v for some
samples and worse for others, in the mean over all no better, and stays so in all looks.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from basic_lite.intervals import refinement_gains
from basic_lite.recipe.schema import SupervisionSection
from basic_lite.supervision.calibration import target_by_gains

TRIALS, LAYERS, PATCHES = 300, 30, 36
RUNS, LOOKS = 200, 7
# How far a layer's chance of a sample lies from v's: a factor of e^N(0, SPREAD).
SPREAD = 0.5
MEASURED = SupervisionSection(preset="measured")
Matches = NDArray[np.float64]  # [place, i, j]: the share of sample i's patches whose nearest word is in text j


def made_look(rng: np.random.Generator, samples: int, layers: int) -> Matches:
    """Matches at v and after each layer; each sample has chances of its own, below .1 for the most part."""
    chance = rng.beta(0.5, 10, size=(samples, samples))
    np.fill_diagonal(chance, rng.beta(1, 10, size=samples))
    return rng.binomial(PATCHES, chance, size=(layers + 1, samples, samples)) / PATCHES


def made_run(rng: np.random.Generator, samples: int) -> list[Matches]:
    """The looks of a run. A layer's chance differs from v's in each sample, at all looks alike; not in the mean."""
    chance = rng.beta(0.5, 10, size=(samples, samples))
    np.fill_diagonal(chance, rng.beta(1, 10, size=samples))
    factors = rng.lognormal(0, SPREAD, size=(LAYERS + 1, samples, 1))
    places = np.minimum(chance * factors, 1)
    return [rng.binomial(PATCHES, places) / PATCHES for _ in range(LOOKS)]


def opens(look: Matches) -> bool:
    """Whether the gate opens on the matches of v, at place 0, and of v̂, at the last one."""
    return refinement_gains(look[[0, -1]])[-1].verdict(look.shape[1]) == "holds"


def with_target(look: Matches, choosing: slice, deciding: slice) -> Matches:
    """v and v̂ of the samples that decide. The choice is the gate's; v̂'s matches are those of its layers, weighted."""
    gains = [gain.value for gain in refinement_gains(look[:, choosing, choosing])]
    weights = target_by_gains(MEASURED, gains, None).layer_weights
    tested = look[:, deciding, deciding]
    return np.stack([tested[0], np.tensordot(weights, tested[1 : 1 + len(weights)], axes=1)])


def run_opens(looks: list[Matches], deciding: int) -> tuple[bool, bool]:
    """Whether any look of a run shows the premise on the samples that decide, and whether others show it there too."""
    seen = 2 * deciding
    choosing, testing, again = slice(0, seen, 2), slice(1, seen, 2), slice(seen, None)
    shown = [look for look in looks if opens(with_target(look, choosing, testing))]
    return bool(shown), any(opens(with_target(look, choosing, again)) for look in shown)


def main() -> int:
    rng, every, even, odd = np.random.default_rng(0), slice(None), slice(0, None, 2), slice(1, None, 2)
    for samples in (16, 32, 64):
        opened = sum(opens(made_look(rng, samples, 1)) for _ in range(TRIALS))
        print(f"a fixed layer, {samples} samples: opened in {opened / TRIALS:.1%} of {TRIALS} looks", flush=True)
    looks = [made_look(rng, 64, LAYERS) for _ in range(TRIALS)]
    for name, halves in (("chosen and decided on all", (every, every)), ("halves, as the gate", (even, odd))):
        opened = sum(opens(with_target(look, *halves)) for look in looks)
        print(f"the best of {LAYERS} layers, 64 samples, {name}: {opened / TRIALS:.1%} of {TRIALS} looks", flush=True)
    for deciding in (16, 32):
        runs = [run_opens(made_run(rng, 3 * deciding), deciding) for _ in range(RUNS)]
        alone, both = (sum(one) / RUNS for one in zip(*runs, strict=True))
        print(
            f"a run of {LOOKS} looks, {deciding} samples decide: {alone:.1%} of {RUNS} runs show it at a look, "
            f"{both:.1%} on others too, as the gate",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
