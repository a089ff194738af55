"""Which visual tokens SDS is computed on, where ``supervision.sds_tokens`` takes a part of them."""

import dataclasses
import zlib

import numpy as np
import torch
from torch import Tensor

from basic_lite.supervision.layout import Layout


def draw_tokens(layout: Layout, ids: Tensor, count: int, *, seed: int, step: int) -> Layout:
    """The layout with ``count`` visual tokens of each sample drawn for SDS; all of a sample that has no more.

    A sample's N tokens are cut into ``count`` blocks of consecutive ones. Each block gives one token, every one with
    the same chance, and it stands for the block: its a_i is multiplied by the block's size. So L_sds and its gradient
    are unbiased. The draw follows from ``seed``, ``step`` and the sample's own tokens. So it is the same whatever the
    micro-batch, the process and the attempt.

    Args:
        layout: on the CPU.
        ids: [B, T], on the CPU.
        step: number of the optimizer step.
    """
    counts = torch.bincount(layout.sample, minlength=len(ids)).tolist()
    if max(counts, default=0) <= count:
        return layout
    rows, sizes, first = [], [], 0
    for row, tokens in enumerate(counts):
        edges = np.arange(min(count, tokens) + 1) * tokens // max(1, min(count, tokens))
        widths = np.diff(edges)
        own = zlib.crc32(ids[row][layout.valid[row]].numpy().tobytes())
        rows.append(first + edges[:-1] + np.random.default_rng([seed, step, own]).integers(widths))
        sizes.append(widths)
        first += tokens
    return dataclasses.replace(
        layout,
        sds_rows=torch.from_numpy(np.concatenate(rows)),
        sds_sizes=torch.from_numpy(np.concatenate(sizes)).float(),
    )
