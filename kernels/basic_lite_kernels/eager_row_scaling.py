"""The sizes of a layer's rows in plain PyTorch, a few rows at a time.

Symbols: B batch · T sequence · M packed visual tokens · D hidden size.
"""

import torch
from torch import Tensor

from basic_lite_kernels.eager_direction_loss import SCRATCH_BYTES, row_chunks
from basic_lite_kernels.signatures import RowScaling


def row_scaling(hidden: Tensor, positions: Tensor, massive: Tensor | None = None) -> RowScaling:
    """‖row‖ of rows, and 1 / their root mean square without the massive dimensions.

    Args:
        hidden: [B, T, D], the residual stream after a decoder layer, any floating type.
        positions: [M] int64, indices into the flattened B·T.
        massive: [D] bool, the dimensions that are left out of the factors; None: none.

    Returns:
        Norms and factors [M] in float32 (float64 for float64 inputs), with a graph where grad mode is on and ``hidden``
        has one. A zero row, and one that is nothing but massive dimensions, has the factor 0 and the gradient 0.

    Peak extra bytes: at most SCRATCH_BYTES and 4·M·D, and 16·M. With a graph: 8·M·D, of which it keeps 4·M·D.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])  # [B·T, D]
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    kept = flat.shape[1] if massive is None else (~massive).sum().to(dtype)
    row_bytes = 2 * flat.shape[1] * dtype.itemsize  # cast, and without the massive dimensions
    scratch = min(SCRATCH_BYTES, 4 * positions.numel() * flat.shape[1])
    norms, factors = [flat.new_empty(0, dtype=dtype)], [flat.new_empty(0, dtype=dtype)]
    for chunk in row_chunks(positions.numel(), row_bytes, scratch):
        rows = flat.index_select(0, positions[chunk]).to(dtype)
        norm = torch.linalg.vector_norm(rows, dim=1)
        rest = norm if massive is None else torch.linalg.vector_norm(rows.masked_fill(massive, 0), dim=1)
        del rows  # else it is there while the next chunk is gathered
        norms.append(norm)
        factors.append(kept**0.5 / rest.masked_fill(rest == 0, torch.inf))
    return RowScaling(torch.cat(norms), torch.cat(factors), massive)
