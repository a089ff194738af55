"""What a run logs about the embeddings, to tell a falling DAS from a collapse. O(M·D), nothing [M, V]."""

import torch
from torch import Tensor

from basic_lite.supervision.layout import Layout
from basic_lite.supervision.vocabulary import Vocabulary

SAMPLED_PATCHES = 64


@torch.no_grad()
def embedding_metrics(
    v: Tensor, target: Tensor, weights: Tensor, layout: Layout, vocabulary: Vocabulary
) -> dict[str, Tensor]:
    """Float32 scalars on the device, for v and v̂ [M, D] and a [M].

    - ``sum_a``: Σ_i a_i, mean over the samples with an image.
    - ``cos``: cos(v_i, v̂_i), the mean over samples of the mean over their patches, as all means here.
    - ``pairwise_cos``: mean cosine of two different patches of one sample; towards 1 is collapse.
    - ``norm_to_target``: mean ‖v_i‖ / mean ‖v̂_i‖. 0 where v̂ is 0. Over several micro-batches the ratios are
      averaged.
    - ``norm_to_vocabulary``: mean ‖v_i‖ / mean ‖E_w‖.
    """
    v, target = v.detach(), target.detach()
    norms = torch.stack([torch.linalg.vector_norm(x, dim=1) for x in (v, target)])  # [2, M]
    inverse, inverse_target = torch.where(norms > 0, norms.reciprocal(), norms)  # 0 of a row of zeros
    cosine = torch.linalg.vecdot(v, target) * inverse * inverse_target
    with torch.autocast(v.device.type, enabled=False):
        norm, norm_target, mean_cosine = torch.cat([norms, cosine.unsqueeze(0)]) @ layout.shares.to(v.dtype)
    return {
        "sum_a": weights.sum() / layout.samples_with_image,
        "cos": mean_cosine,
        "pairwise_cos": _pairwise_cosine(v, inverse, layout),
        "norm_to_target": torch.where(norm_target > 0, norm / norm_target, norm_target),
        "norm_to_vocabulary": norm / vocabulary.mean_norm(),
    }


def _pairwise_cosine(v: Tensor, inverse: Tensor, layout: Layout) -> Tensor:
    """Mean over samples of the mean cosine of two different patches.

    That is (‖Σ u‖² − Σ ‖u‖²) / (N (N − 1)) with u = v/‖v‖.
    """
    # One product sums every sample's unit vectors: no [M, D] of them, no atomics.
    with torch.autocast(v.device.type, enabled=False):
        member = layout.members.to(v.dtype)  # [B, M]
        total = (member * inverse) @ v  # [B, D]
        unit = member @ (inverse > 0).to(v.dtype)  # [B]
    return torch.dot(total.square().sum(dim=1) - unit, layout.pair_shares.to(v.dtype))


@torch.no_grad()
def nearest_special_share(v: Tensor, vocabulary: Vocabulary, special_ids: Tensor) -> Tensor:
    """Share of patches whose nearest word is a special token, on at most SAMPLED_PATCHES spread evenly.

    Args:
        v: [M, D].
        special_ids: int64, on v's device.
    """
    chosen = torch.linspace(0, v.shape[0] - 1, min(SAMPLED_PATCHES, v.shape[0]), device=v.device).round().long()
    nearest = vocabulary.nearest(v.detach()[chosen])
    # torch.isin sorts where there are more than some ten ids, and then the host waits for the device.
    return (nearest.unsqueeze(1) == special_ids).any(dim=1).float().mean()
