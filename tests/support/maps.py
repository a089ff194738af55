"""Token maps that nobody measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from basic_lite.supervision.picture_maps import PictureMaps, as_jpeg


class Grey:
    """An image processor that changes no colour."""

    do_normalize, do_rescale = False, True


def drawn_maps(side: int, words: Sequence[str], *, name: str = "a.png", rows: int | None = None) -> PictureMaps:
    """Maps of ``side`` × ``side`` patches: v and layer 1 have ``words`` in turn, v̂ has `sky`; patch 1 is a sink.

    ``rows``: 0 where the grid isn't known.
    """
    count = side * side
    turned = (list(words) * count)[:count]
    return PictureMaps(
        name=name,
        part="",
        text="a dog below the sky",
        picture="" if rows == 0 else as_jpeg(torch.full((3, 8, 8), 0.5), Grey),
        rows=side if rows is None else rows,
        columns=side if rows is None else count,
        places=["v", "h1", "target"],
        words=[turned, turned, ["sky"] * count],
        in_text=[[n for n, word in enumerate(turned) if word == "dog"]] * 2 + [[]],
        attention=[0.001 * (n % 7) for n in range(count)],
        whose="the answer",
        attended=2,
        sinks=[1] if count > 1 else [],
        trace=[(0.9, 0.8, 1.0), (0.5, 0.1, 0.7), (0.6, 0.4, 0.8)],
        layers=2,
    )
