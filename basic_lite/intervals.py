"""All 95 % intervals: one method for each kind of number, wherever it is shown. What they draw with is `resampling.py`.

- A share of right answers, and what follows from one (F1): **Wilson's** score interval, which Brown, Cai and DasGupta
  (2001, Statistical Science 16) recommend for few answers and for shares near 0 and 1.
- A mean of scores from 0 to 1, and a difference of two on the same questions: a **Bayesian bootstrap** (Rubin 1981,
  Annals of Statistics 9). Each draw weighs the questions anew at random, and beside them one more question of either
  end of the scale. Without these two a draw could only hold what was seen: where all questions agree, the interval
  would have no width. For right and wrong on the same questions they are the pseudo-counts of Bonett and Price (2012),
  one of the methods that Fagerland, Lydersen and Laake (2014, Statistics in Medicine 33) recommend.
- The gain of the refinement curve, and the text probe's bits a byte: a **bootstrap** over samples or texts, as these
  values have no ends to add. Of fewer than 16 samples the gain has none.

How often an interval of 95 % holds the true value (exact for shares, F1 and differences, else 1,500 draws):

| | n = 20 | n = 100 |
|---|---|---|
| share of .5; .9; 1 | .96; .96; 1 | .94; .94; 1 |
| F1 of .5; .9; 1, half of the questions to be answered no | .95; .96; 1 | .95; .95; 1 |
| mean of partial scores, .58; .95; .98 | .96; .95; .94 | .94; .95; .95 |
| difference, the one alone right in .25; .1; .02 of the questions, the other as often | .96; .98; 1 | .95; .95; .98 |
| difference, the one alone right in .2; .1; .05, the other in .05; 0; 0 | .98; 1; 1 | .96; .97; .96 |

A plain bootstrap holds a mean of .98 of 20 partial scores in .40 of the cases, and the
difference of .05 against 0 in .64. With few runs a side the drawing among runs is too narrow still; callers say so.
The table is made by `pytest -m soak -s tests/test_intervals.py`.

No torch is needed here.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basic_lite.resampling import LEAST_SAMPLES, RESAMPLES, SEED, Interval, draws_of, middle

# The 97.5 % point of the normal distribution.
_Z = 1.959964
# Draws at a time: of 100,000 questions that all differ they take 80 MB.
_CHUNK = 100


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's interval of a share: what it may well be among very many such questions."""
    centre = (right + _Z**2 / 2) / (n + _Z**2)
    half = _Z / (n + _Z**2) * math.sqrt(right * (n - right) / n + _Z**2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def f1_interval(hits: int, wrong: int) -> tuple[float, float]:
    """The interval of F1 = 2 hits / (2 hits + wrong).

    F1 = 2 J / (1 + J) with J = hits / (hits + wrong), which is a share: the ends of its interval, put in, are F1's.

    Args:
        wrong: "yes" where it isn't, and where "yes" is missing, together; with ``hits`` at least one.
    """
    low, high = (2 * end / (1 + end) for end in wilson(hits, hits + wrong))
    return low, high


def mean_interval(scores: NDArray[Any]) -> Interval:
    """The mean of scores from 0 to 1; of right and wrong answers of one run it is Wilson's.

    Args:
        scores: [runs, n], at least one of each.
    """
    if len(scores) == 1 and bool(np.isin(scores, (0, 1)).all()):
        right, n = int(scores.sum()), scores.shape[1]
        return Interval(right / n, *wilson(right, n))
    return difference(scores, np.zeros((0, scores.shape[1])))


def difference(scores: NDArray[Any], base: NDArray[Any]) -> Interval:
    """Mean of ``scores`` minus mean of ``base``, of the same questions.

    A draw weighs the questions alike on both sides, and takes of each side as many runs as it has, with replacement.

    Args:
        scores: [runs, n], from 0 to 1.
        base: [other runs, n]; without a run its mean is 0.
    """
    both = np.concatenate([scores, base]).astype(np.float64)  # [runs of both, n]
    # One more question of either end: all of one side right and all of the other wrong, and the other way round.
    ends = np.repeat([[1.0, 0.0], [0.0, 1.0]], [len(scores), len(base)], axis=0)
    # Questions with the same scores in all runs are of one kind, and drawn together.
    kinds, counts = np.unique(np.concatenate([both, ends], axis=1), axis=1, return_counts=True)
    generator, gains = np.random.default_rng(SEED), []
    for means in _drawn_means(kinds, counts, generator):  # [draws, runs of both]
        own, other = means[:, : len(scores)], means[:, len(scores) :]
        gains.append(_of_runs(own, generator) - _of_runs(other, generator))
    low, high = middle(np.concatenate(gains))
    value = float(scores.mean() - (base.mean() if len(base) else 0.0))
    return Interval(value, min(low, value), max(high, value))


def difference_of_chosen(looks: NDArray[Any], chosen: int, base: int) -> Interval:
    """Mean of one of several looks at the same questions minus mean of another, whichever was chosen for its score.

    Each draw moves every look against the base away from its value; the farthest move is kept. The interval is as wide
    on either side as the 95 % least of these. So it holds for all looks at once, and thus for the chosen one (the
    single-step method of Westfall and Young 1993).

    2,000 worlds each of 3 or 10 looks of equal truth at 60 questions: it said that the best is better than the last in
    .027 and .023 of them where the answers were drawn apart, in .016 and .010 where two looks agreed in .82 of the
    questions. ``difference``, which doesn't know of the choice, said so in .058 and .140, and in .039 and .122.

    Args:
        looks: [looks, n], from 0 to 1.
        chosen: index of the one.
        base: index of the other; it wasn't chosen for its score.
    """
    # One more question of either end, as above: all others right and the base wrong, and the other way round.
    ends = np.repeat([[1.0, 0.0]], len(looks), axis=0)
    ends[base] = 0.0, 1.0
    kinds, counts = np.unique(np.concatenate([looks, ends], axis=1), axis=1, return_counts=True)
    means = counts @ kinds.T / counts.sum()  # [looks]
    centre = means - means[base]
    generator, farthest = np.random.default_rng(SEED), []
    for means in _drawn_means(kinds, counts, generator):  # [draws, looks]
        farthest.append(np.abs(means - means[:, [base]] - centre).max(axis=1))
    # Rounded, so that looks without any difference give 0.
    half = float(np.quantile(np.concatenate(farthest).round(12), 0.95))
    value = float(looks[chosen].mean() - looks[base].mean())
    low, high = (float((centre[chosen] + way * half).round(12)) for way in (-1, 1))
    return Interval(value, min(low, value), max(high, value))


def ratio_interval(values: NDArray[np.float64], sizes: NDArray[np.float64]) -> Interval:
    """Sum of ``values`` over the sum of ``sizes``; a draw has its own of both.

    Args:
        values, sizes: [n], of the same texts.
    """
    draws = draws_of(np.ones(len(sizes), np.int64))  # [draws, n]
    return Interval(float(values.sum() / sizes.sum()), *middle((draws @ values) / (draws @ sizes)))


def refinement_gains(matches: NDArray[np.float64]) -> list[Interval]:
    """Of the refinement curve score(place) − score(v), for each place after v; none for too few samples.

    Score: own share (mean of the diagonal) minus control (mean over pairs of two samples). In a draw with counts c,
    sample i counts c_i times and the pair i ≠ j c_i c_j times. A sample is never its own control.

    Args:
        matches: [P, n, n]; at each place, v first, the share of sample i's patches whose nearest word is in text j.
    """
    count = matches.shape[1]
    if count < LEAST_SAMPLES:
        return []
    draws = draws_of(np.ones(count, np.int64))
    pairs = count**2 - np.square(draws).sum(axis=1)
    draws, pairs = draws[pairs > 0].astype(np.float64), pairs[pairs > 0]  # without pairs there is no control
    return [_gain(place - matches[0], draws, pairs) for place in matches[1:]]


def _gain(change: NDArray[np.float64], draws: NDArray[np.float64], pairs: NDArray[np.int64]) -> Interval:
    """The gain of one place.

    Args:
        change: [n, n], the place's matches minus v's.
        draws: [R, n], how often each draw has each sample.
        pairs: [R], ordered pairs of two different samples in each draw.
    """
    count = len(change)
    own = np.diagonal(change)
    others = change - np.diag(own)
    gains = draws @ own / count - ((draws @ others) * draws).sum(axis=1) / pairs
    return Interval(float(own.mean() - others.sum() / (count * (count - 1))), *middle(gains))


def _drawn_means(
    kinds: NDArray[np.float64], counts: NDArray[np.int64], generator: np.random.Generator
) -> Iterator[NDArray[np.float64]]:
    """Means of each row of ``kinds`` [rows, kinds], each kind ``counts`` times there: [draws, rows], in chunks."""
    for start in range(0, RESAMPLES, _CHUNK):
        drawn = generator.gamma(counts, size=(min(_CHUNK, RESAMPLES - start), len(counts)))  # [draws, kinds]
        yield drawn @ kinds.T / drawn.sum(axis=1, keepdims=True)


def _of_runs(means: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """[draws, runs] → [draws]: the mean of as many runs, drawn with replacement; 0 where there is none."""
    runs = means.shape[1]
    if runs < 2:
        return means.sum(axis=1)
    weights = generator.multinomial(runs, np.full(runs, 1 / runs), size=len(means))
    mean: NDArray[np.float64] = (means * weights).sum(axis=1) / runs
    return mean
