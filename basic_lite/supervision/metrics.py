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
    - ``cos``: mean cos(v_i, v̂_i).
    - ``pairwise_cos``: mean cosine of two different patches of one sample; towards 1 is collapse.
    - ``norm_to_target``: mean ‖v_i‖ / mean ‖v̂_i‖.
    - ``norm_to_vocabulary``: mean ‖v_i‖ / mean ‖E_w‖.
    """
    v, target = v.detach(), target.detach()
    norm, norm_target = (torch.linalg.vector_norm(x, dim=1) for x in (v, target))
    inverse = torch.where(norm > 0, 1 / norm, torch.zeros_like(norm))
    inverse_target = torch.where(norm_target > 0, 1 / norm_target, torch.zeros_like(norm_target))
    cosine = torch.linalg.vecdot(v, target) * inverse * inverse_target
    return {
        "sum_a": weights.sum() / layout.samples_with_image,
        "cos": cosine.mean(),
        "pairwise_cos": _pairwise_cosine(v, inverse, layout),
        "norm_to_target": norm.mean() / norm_target.mean(),
        "norm_to_vocabulary": norm.mean() / vocabulary.mean_norm(),
    }


def _pairwise_cosine(v: Tensor, inverse: Tensor, layout: Layout) -> Tensor:
    """Mean over samples of the mean cosine of two different patches.

    That is (‖Σ u‖² − Σ ‖u‖²) / (N (N − 1)) with u = v/‖v‖.
    """
    samples = torch.arange(layout.patches.numel(), device=v.device).unsqueeze(1)
    # One product sums every sample's unit vectors: no [M, D] of them, no atomics.
    with torch.autocast(v.device.type, enabled=False):
        member = (layout.sample == samples).to(v.dtype)  # [B, M]
        total = (member * inverse) @ v  # [B, D]
        unit = member @ (inverse > 0).to(v.dtype)  # [B]
    count = member.sum(dim=1)
    several = count > 1
    pairs = torch.where(several, count * (count - 1), torch.ones_like(count))
    cosine = (total.square().sum(dim=1) - unit) / pairs
    return torch.where(several, cosine, torch.zeros_like(cosine)).sum() / several.sum().clamp_min(1)


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
