"""How noisy SDS gets when it is computed on a part of a sample's visual tokens: ``python -m bench.sds_draw``.

The relative standard error of Σ a_i KL_i, with blocks (what ``supervision.sds_tokens`` does) and with plain draws of as
many tokens. The terms are made: fields over a square of patches, smooth and then exponentiated, as a picture's a_i and
KL_i are uneven. Run folders that are named are measured too, on their own pictures: ``python -m bench.sds_draw RUN``.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from basic_lite.data.prepare import prepare_data
from basic_lite.supervision.calibration import moved
from basic_lite.supervision.draw import draw_tokens
from basic_lite.supervision.layout import find_layout
from basic_lite.supervision.patch_weights import patch_weights
from basic_lite.training.assembly import supervise
from basic_lite.training.bundle import load_trained
from basic_lite_kernels.eager_vocab_kl import vocab_kl

SIDE, COUNTS = 24, (16, 64, 144)
# Patches over which a field changes.
SMOOTH = (2.0, 4.0)


def smooth_terms(*, seed: int, scale: float = 2.0) -> Tensor:
    """a_i KL_i of a picture of SIDE² patches, [N] float64: positive, of a mean of 1, smooth over ``scale`` patches."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    reach = int(3 * scale)
    place = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-(place**2) / (2 * scale**2))
    padded = functional.pad(noise, (reach,) * 4, mode="reflect")
    field = functional.conv2d(functional.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    field = (field - field.mean()) / field.std()
    terms = torch.exp(field[0] + field[1]).flatten()
    return terms / terms.mean()


def relative_error(terms: Tensor, count: int, *, draws: int, blocks: bool) -> float:
    """Standard deviation of the estimated sum over many draws, over the sum."""
    ids = torch.zeros(1, len(terms), dtype=torch.int64)
    layout = find_layout({"input_ids": ids}, 0, "all")
    generator = torch.Generator().manual_seed(0)
    sums = []
    for step in range(draws):
        if blocks:
            drawn = draw_tokens(layout, ids, count, seed=0, step=step)
            rows, sizes = drawn.sds_rows, drawn.sds_sizes
            sums.append(float(terms.sum() if rows is None or sizes is None else (terms[rows] * sizes).sum()))
        else:
            rows = torch.randperm(len(terms), generator=generator)[:count]
            sums.append(float(terms[rows].sum() * len(terms) / count))
    return float(torch.tensor(sums, dtype=torch.float64).std() / terms.sum())


@torch.no_grad()
def run_terms(folder: Path) -> list[Tensor]:
    """a_i KL_i of a run's first pictures, [N] float64 each, the held-out ones where there are any."""
    loaded, bundle = load_trained(folder, torch.device("cpu"))
    supervision = supervise(bundle.recipe, loaded, print)
    assert supervision is not None, "the run had BASIC off"
    words, terms = supervision.vocabulary, []
    data = prepare_data(bundle.recipe, loaded.frontend, say=print)
    for batch in moved(data.batches_with_images(16, 4), supervision.device):
        layout = supervision.layout(batch)
        with supervision.capture(layout) as captured:
            loaded.model.model(**{name: x for name, x in batch.items() if name != "labels"}, use_cache=False)
        v, target = captured.v, captured.target
        assert v is not None and target is not None
        weights = patch_weights(captured, "attention", None)
        rows = [
            vocab_kl(
                v[i, None], target[i, None], words.table, weights[i, None], scale=words.scale, excluded=words.excluded
            )
            for i in range(len(v))
        ]
        terms += [torch.stack(rows).double()[layout.sample == row] for row in layout.rows_with_image.tolist()]
    return terms


def line(name: str, pictures: list[Tensor], counts: Sequence[int], draws: int) -> str:
    """A line of the table: the mean over pictures."""
    cells = []
    for count in counts:
        both = [[relative_error(t, count, draws=draws, blocks=blocks) for t in pictures] for blocks in (True, False)]
        cells.append(" / ".join(f"{statistics.fmean(errors):.1%}" for errors in both))
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    print(f"| {SIDE**2} made terms, blocks / plain | " + " | ".join(map(str, COUNTS)) + " |")
    print("|---" * (1 + len(COUNTS)) + "|")
    for scale in SMOOTH:
        print(
            line(f"smooth over {scale:g} patches", [smooth_terms(seed=i, scale=scale) for i in range(8)], COUNTS, 500)
        )
    for folder in sys.argv[1:]:
        pictures = run_terms(Path(folder))
        N = len(pictures[0])
        counts = [max(1, round(N * count / SIDE**2)) for count in COUNTS]
        print(line(f"{folder}: {counts} of {N}", pictures, counts, 500))


if __name__ == "__main__":
    main()
