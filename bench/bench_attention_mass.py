"""``attention_mass`` (a_i) of one layer beside the map of ``output_attentions``; on a GPU beside torch.compile.

Symbols: B batch · T sequence · N visual tokens of a sample · n text queries of a sample · H heads · H_kv key heads ·
d head size. Counted: two passes over text queries × keys, 2·d FLOPs a score; bytes: queries of the text and all keys
once. The bound is the larger of the two. ``output_attentions`` keeps the maps of all layers; here there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from basic_lite_kernels import naive
from basic_lite_kernels.eager_attention_mass import CHUNK_ELEMENTS
from basic_lite_kernels.operations import Operations
from basic_lite_kernels.signatures import MassTokens
from bench import measure
from bench.report import Report
from bench.rows import TOLERANCE, Case, Contender, Found, contenders_of, shape_label


@dataclass(frozen=True)
class Shape:
    images: int  # one a sample
    N: int
    before: int  # text before the image: no query of it counts
    n: int  # text after it
    H: int
    H_kv: int
    d: int
    dtype: torch.dtype
    compiles: bool = False

    @property
    def T(self) -> int:
        return self.before + self.N + self.n

    def __str__(self) -> str:
        heads = f"H {self.H}" if self.H_kv == self.H else f"H {self.H}:{self.H_kv}"
        return shape_label(self.images, f"T {self.T}, N {self.N}, n {self.n}, {heads}, d {self.d}", self.dtype)


SHAPES = {
    "tiny": [Shape(n, 12, 2, 6, 4, 2, 16, torch.float32) for n in (1, 2)],
    "cpu": [Shape(n, 576, 35, 128, 32, 32, 128, torch.float32) for n in (1, 2, 4)],
    "gpu": [
        *(Shape(n, 576, 35, 128, 32, 32, 128, torch.bfloat16, compiles=n == 4) for n in (1, 4, 8)),
        *(Shape(n, 576, 35, 128, 28, 4, 128, torch.bfloat16) for n in (1, 4)),
        Shape(4, 576, 35, 1437, 32, 32, 128, torch.bfloat16),  # T 2048, as long as stage 2 takes them
    ],
}


@dataclass(frozen=True)
class Inputs:
    query: Tensor  # [B, H, T, d], strided as a model hands it over
    key: Tensor  # [B, H_kv, T, d]
    scaling: float
    text: Tensor  # [B, T] bool
    visual: Tensor  # [B, T] bool
    valid: Tensor  # [B, T] bool
    tokens: MassTokens  # of the three masks: made once a micro-batch, so not timed

    @classmethod
    def make(cls, shape: Shape, device: torch.device) -> Inputs:
        B, T, d = shape.images, shape.T, shape.d
        query = 2 * measure.draw(B, T, shape.H, d, device=device, dtype=shape.dtype)
        key = measure.draw(B, T, shape.H_kv, d, device=device, dtype=shape.dtype, seed=1)
        visual = torch.zeros(B, T, dtype=torch.bool, device=device)
        visual[:, shape.before : shape.before + shape.N] = True
        text = torch.zeros_like(visual)
        text[:, shape.before + shape.N :] = True
        valid = torch.ones_like(visual)
        for b in range(1, B):  # texts differ in length: the shorter ones are padded
            valid[b, T - b * shape.n // (2 * B) :] = False
        tokens = MassTokens.of(text, visual, valid)
        return cls(query.transpose(1, 2), key.transpose(1, 2), d**-0.5, text & valid, visual, valid, tokens)


def mass(operation: Callable[..., Tensor], inputs: Inputs) -> Found:
    """Attention mass of one layer by naive code."""
    masks = {"text_queries": inputs.text, "visual": inputs.visual, "valid": inputs.valid}
    return None, operation(inputs.query, inputs.key, scaling=inputs.scaling, **masks)


def ours(operations: Operations, inputs: Inputs) -> Found:
    return None, operations.attention_mass(inputs.query, inputs.key, scaling=inputs.scaling, tokens=inputs.tokens)


def contenders(shape: Shape, inputs: Inputs, device: torch.device) -> list[Contender]:
    return contenders_of(
        device,
        naive.attention_mass,
        step=lambda work: mass(work, inputs),
        ours=lambda operations: ours(operations, inputs),
        compiles=shape.compiles,
    )


def exact(inputs: Inputs) -> Found:
    """Naive code in float64, one sample at a time."""
    found = []
    for b in range(len(inputs.query)):
        one = slice(b, b + 1)
        masks = {"text_queries": inputs.text[one], "visual": inputs.visual[one], "valid": inputs.valid[one]}
        query, key = inputs.query[one].double(), inputs.key[one].double()
        found.append(naive.attention_mass(query, key, scaling=inputs.scaling, **masks))
    return None, torch.cat(found)


def test_speed_and_memory(shape: Shape, report: Report, device: torch.device) -> None:
    inputs = Inputs.make(shape, device)
    B, T, n, H, d = shape.images, shape.T, shape.n, shape.H, shape.d
    case = Case(
        operation="attention_mass",
        shape=str(shape),
        images=B,
        elements=B * shape.N,
        unit="B·N",
        moved_bytes=inputs.query.element_size() * d * B * (H * n + shape.H_kv * T) + 4 * B * T,
        flops=2 * d * B * H * n * (T + shape.N),  # the second pass needs the visual keys alone
        tolerance=TOLERANCE[shape.dtype],
    )
    report.compare(case, contenders(shape, inputs, device), exact(inputs))

    # The result, and one number for each text query of each head.
    strict = 4 * B * T + 4 * B * n * H
    chunk = CHUNK_ELEMENTS[device.type]
    # 40 bytes a position: rows and masks.
    bounds = {"reference": (strict + 14 * chunk + 40 * B * T, f"scratch of {14 * chunk / 2**20:g} MiB")}
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        # Partial sums of the heads' splits; each allocation is rounded up to 512 bytes.
        allowed = strict + 1024 * processors + 4 * B * shape.N + 4096
        bounds["triton"] = allowed, f"partial sums for {processors} multiprocessors"
    report.gate_rows(case, "attention mass", strict, bounds)
