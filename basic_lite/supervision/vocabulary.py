"""E, the table of words that SDS, the metrics and the refinement curve compare visual tokens with."""

from typing import Literal

import torch
from torch import Tensor, nn

from basic_lite.errors import UserError
from basic_lite.model.parts import Parts

SCRATCH_ELEMENTS = 2**24
# So that a row of zeros has cosines of 0.
_LEAST_NORM = 1e-12


class Vocabulary:
    """Rows of E that are words: [V, D] read in place, never copied, never given a gradient.

    ``input_embeddings``: what the LLM sees when a token is its input, so an embedding module that scales its
    rows (Gemma's) counts scaled. ``lm_head``: the head's rows, raw.
    """

    def __init__(
        self, parts: Parts, kind: Literal["input_embeddings", "lm_head"], ids: Tensor, scale: float | None = None
    ) -> None:
        """Check that the table can be read row by row, and measure its scale.

        Args:
            kind: which table.
            ids: ids some token of the tokenizer has; the image token's doesn't count.
            scale: factor the embedding module puts on its rows; None: measured.

        Raises:
            UserError: E is quantised, carries a LoRA or a trainable copy, is scaled unevenly, or has fewer
                rows than the tokenizer has ids.
        """
        self._module: nn.Module = parts.lm_head if kind == "lm_head" else parts.embeddings
        weight = _plain_weight(self._module, kind)
        ids = ids.detach().cpu().unique()
        self.ids = ids[ids != parts.image_token_id]
        if self.ids.numel() == 0 or int(self.ids[-1]) >= weight.shape[0]:
            raise UserError(
                f"the tokenizer has ids up to {int(ids.max()) if ids.numel() else 'none'}, the {kind} table has "
                f"{weight.shape[0]} rows: tokenizer and LLM don't belong together; check model.llm or model.base"
            )
        self.rows = int(self.ids[-1]) + 1
        excluded = torch.ones(self.rows, dtype=torch.bool)
        excluded[self.ids] = False
        # Ids without a gap need no mask: a slice of the table is enough.
        self._excluded = excluded if bool(excluded.any()) else None
        scale = 1.0 if kind == "lm_head" else scale
        self.scale = _embedding_scale(self._module, weight, self.ids) if scale is None else scale
        self._norms: Tensor | None = None
        self._mean_norm: Tensor | None = None

    @property
    def table(self) -> Tensor:
        """[V, D] as stored, up to the highest used id. Rows are to be multiplied by ``scale``."""
        weight = self._module.weight
        assert isinstance(weight, Tensor)
        return weight.detach()[: self.rows]

    @property
    def excluded(self) -> Tensor | None:
        """[V] bool: rows of ``table`` that no token uses. None where there are none."""
        if self._excluded is not None and self._excluded.device != self.table.device:
            self._excluded = self._excluded.to(self.table.device)
        return self._excluded

    @torch.no_grad()
    def norms(self) -> Tensor:
        """‖E_w‖ of the rows of ``table``, [V] float32. Computed once: E is frozen."""
        if self._norms is None or self._norms.device != self.table.device:
            step = max(1, SCRATCH_ELEMENTS // self.table.shape[1])
            self._norms = torch.cat([rows.float().norm(dim=1) for rows in self.table.split(step)])
        return self._norms

    @torch.no_grad()
    def mean_norm(self) -> Tensor:
        """Mean over words of ‖scale · E_w‖, a float32 scalar. Computed once."""
        if self._mean_norm is None or self._mean_norm.device != self.table.device:
            norms = self.norms() if self.excluded is None else self.norms()[~self.excluded]
            self._mean_norm = self.scale * norms.mean()
        return self._mean_norm

    @torch.no_grad()
    def nearest(self, rows: Tensor) -> Tensor:
        """Id of the word with the highest cosine, [R] int64, for rows [R, D]; 0-vectors get the lowest id.

        Peak extra bytes: about 8·SCRATCH_ELEMENTS, of a float32 E 4·SCRATCH_ELEMENTS; no [R, V] tensor.
        """
        table, excluded = self.table, self.excluded
        best = torch.full((rows.shape[0],), -torch.inf, device=rows.device)
        nearest = torch.zeros(rows.shape[0], dtype=torch.int64, device=rows.device)
        width = table.shape[1]
        words_step = max(1, min(self.rows, SCRATCH_ELEMENTS // width))
        rows_step = max(1, SCRATCH_ELEMENTS // max(width, words_step))
        norms = self.norms().clamp_min(_LEAST_NORM)
        with torch.autocast(rows.device.type, enabled=False):
            for w in range(0, self.rows, words_step):
                words = table[w : w + words_step].float()
                for r in range(0, rows.shape[0], rows_step):
                    chunk = slice(r, r + rows_step)
                    # Cosines but for the row's own length, which puts no word before another.
                    scores = (rows[chunk].float() @ words.T).div_(norms[w : w + words_step])
                    if excluded is not None:
                        scores.masked_fill_(excluded[w : w + words_step], -torch.inf)
                    value, index = scores.max(dim=1)
                    nearer = value > best[chunk]
                    best[chunk] = torch.where(nearer, value, best[chunk])
                    nearest[chunk] = torch.where(nearer, index + w, nearest[chunk])
                    del scores  # else they are there while the next ones are made
        return nearest


def _plain_weight(module: nn.Module, kind: str) -> Tensor:
    """The table's weight, or a refusal."""
    other = "input_embeddings" if kind == "lm_head" else "lm_head"
    fix = f"remove it from lora.targets, or set supervision.vocabulary to {other}"
    names = [name for name, _ in module.named_parameters()]
    if any("lora_" in name or "modules_to_save" in name or "trainable_tokens" in name for name in names):
        raise UserError(
            f"LoRA on a vocabulary table: supervision.vocabulary is {kind}, and that module ({type(module).__name__}) "
            f"has an adapter. BASIC's target distribution needs words that stay where they are; {fix}"
        )
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or hasattr(weight, "quant_state"):
        raise UserError(
            f"supervision.vocabulary is {kind}, and that table ({type(module).__name__}) is quantised: its rows can't "
            f"be read. Load the model with the table unquantised, or set supervision.vocabulary to {other}"
        )
    return weight


@torch.no_grad()
def _embedding_scale(module: nn.Module, weight: Tensor, ids: Tensor) -> float:
    """Measure the factor that the embedding module puts on its rows."""
    probe = ids[torch.linspace(0, ids.numel() - 1, min(64, ids.numel())).long()].to(weight.device)
    stored = weight[probe].double()
    seen = module(probe).double()
    norm = stored.square().sum()
    if seen.shape != stored.shape or not bool(torch.isfinite(norm)) or float(norm) == 0:
        raise UserError(
            f"the LLM's embedding table ({type(module).__name__}) can't be read row by row: it holds zeros or NaN, or "
            "is projected; check model.llm"
        )
    scale = float((seen * stored).sum() / norm)
    # bf16 rows rounded after scaling are off by up to 2^-8.
    if float((seen - scale * stored).norm()) > 0.01 * float(seen.norm()):
        raise UserError(
            f"the LLM's embedding module ({type(module).__name__}) does more than scale its rows, so visual "
            "embeddings can't be compared with them; set supervision.vocabulary to lm_head"
        )
    return scale
