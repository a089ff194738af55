"""The part table: what was really loaded, compared with what the recipe says, and what loading will give."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from bitsandbytes.nn import Params4bit
from torch import nn

from basic_lite.console import Sheet
from basic_lite.errors import UserError
from basic_lite.model.adapt import adapt
from basic_lite.model.device import dtype_name
from basic_lite.model.frontend import Frontend
from basic_lite.model.liger import fusions
from basic_lite.model.load import planned_model
from basic_lite.model.parts import Parts, find_parts
from basic_lite.recipe.schema import Recipe
from basic_lite.sizes import size_text

# bitsandbytes' NF4: a statistic for each 64 weights, float32; double: 8 bit, with a float32 for each 256 of them and
# tables of 16 and 256 float32 a layer.
BLOCK, NESTED_BLOCK = 64, 256


@dataclass(frozen=True)
class Part:
    """One row of the table; ``bytes`` counts weights with their quantisation statistics."""

    part: str
    module: str
    dtype: str
    parameters: int
    trainable: int
    bytes: int


def _quantised(parameter: nn.Parameter) -> Any:
    """bitsandbytes' statistics of a 4-bit weight that has been quantised, else None."""
    return parameter.quant_state if isinstance(parameter, Params4bit) else None


def parameter_count(parameter: nn.Parameter) -> int:
    """Weights a parameter stands for; a 4-bit one packs two in a byte."""
    state = _quantised(parameter)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())


def parameter_bytes(parameter: nn.Parameter) -> int:
    """Bytes of a parameter, with the block statistics of a 4-bit one."""
    state = _quantised(parameter)
    statistics = [] if state is None else state.as_dict(packed=True).values()
    return parameter.nbytes + sum(one.nbytes for one in statistics if isinstance(one, torch.Tensor))


def _weights(parts: Parts) -> list[Part]:
    """A row for each parameter; tied ones count once."""
    groups: list[tuple[str, nn.Module]] = [
        ("vision tower", parts.vision_tower),
        ("projector", parts.projector),
        ("embeddings", parts.embeddings),
        ("head", parts.lm_head),
        ("LLM", parts.language_model),
    ]
    rows: list[Part] = []
    seen: set[int] = set()
    for part, root in groups:
        for module_name, module in root.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                rows.append(_row(part, root, module_name, module, name, parameter))
    for name, parameter in parts.model.named_parameters():
        if id(parameter) not in seen:
            rows.append(_row("other", parts.model, name, parts.model, name, parameter))
    return rows


def _row(part: str, root: nn.Module, path: str, module: nn.Module, name: str, parameter: nn.Parameter) -> Part:
    is_lora = "lora_" in f"{path}.{name}"
    kind = type(root).__name__ if part == "vision tower" else type(module).__name__
    if part == "LLM":
        if is_lora:
            part = "LoRA"
        elif isinstance(module, nn.Linear):
            part = "LLM linears" if name == "weight" else "LLM biases"
        else:  # a matrix outside a linear layer, such as a mixture's stacked experts, would stay unquantised
            part = "LLM norms" if parameter.ndim == 1 else "other LLM weights"
    elif is_lora:
        part = f"LoRA on {part}"
    dtype = dtype_name(parameter.dtype)
    if isinstance(parameter, Params4bit):
        nested = parameter.quant_state is not None and parameter.quant_state.nested
        dtype = f"{parameter.quant_type}{' double' if nested else ''}"
    count = parameter_count(parameter)
    return Part(part, kind, dtype, count, count if parameter.requires_grad else 0, parameter_bytes(parameter))


def _sum(rows: list[Part], **names: str) -> Part:
    """One row with the sums of several."""
    sums = {field: sum(getattr(row, field) for row in rows) for field in ("parameters", "trainable", "bytes")}
    return replace(rows[0], **names, **sums)  # type: ignore[arg-type]


def audit(parts: Parts) -> list[Part]:
    """The part table of a model, one row for each part × module class × dtype."""
    groups: dict[tuple[str, str, str], list[Part]] = {}
    for row in _weights(parts):
        groups.setdefault((row.part, row.module, row.dtype), []).append(row)
    return [_sum(rows) for rows in groups.values()]


def nf4_bytes(weights: int, *, double: bool) -> int:
    """Bytes of ``weights`` weights in NF4 with their statistics (bitsandbytes), tables aside."""
    blocks = -(-weights // BLOCK)
    statistics = blocks + 4 * -(-blocks // NESTED_BLOCK) if double else 4 * blocks
    return -(-weights // 2) + statistics


def planned_parts(recipe: Recipe, frontend: Frontend, dtype: torch.dtype) -> list[Part]:
    """The part table of a recipe's model, made on the meta device: no weight is read or allocated."""
    parts = find_parts(planned_model(frontend, dtype))
    adapt(parts, recipe)
    table = []
    for part in audit(parts):
        if part.part == "LLM linears" and recipe.quantization.mode == "nf4":
            kind = f"nf4{' double' if recipe.quantization.double else ''}"
            size = nf4_bytes(part.parameters, double=recipe.quantization.double)
            part = replace(part, module="Linear4bit", dtype=kind, bytes=size)
        table.append(part)
    return table


def check_parts(table: list[Part], recipe: Recipe, dtype: torch.dtype) -> None:
    """Refuse a model that isn't what the recipe says.

    Raises:
        UserError: names every part that differs, what was found and what was expected.
    """
    plain = dtype_name(dtype)
    four_bit = f"nf4{' double' if recipe.quantization.double else ''}"
    wanted_linears = four_bit if recipe.quantization.mode == "nf4" else plain
    wrong: list[str] = []

    def expect(part: Part, dtypes: set[str], trained: bool, why: str) -> None:
        if part.dtype not in dtypes:
            wrong.append(f"{part.part} ({part.module}) is {part.dtype}, expected {' or '.join(sorted(dtypes))}: {why}")
        if part.trainable != (part.parameters if trained else 0):
            state = f"{part.trainable:,} of {part.parameters:,} weights trainable"
            wrong.append(f"{part.part} ({part.module}) has {state}, expected {'all' if trained else 'none'}: {why}")

    for part in table:
        match part.part:
            case "projector":
                expect(part, {"float32"}, True, "the projector is trained in full precision")
            case "LLM linears":
                expect(part, {wanted_linears}, False, f"quantization.mode is {recipe.quantization.mode}")
            case "LoRA":
                expect(part, {recipe.lora.dtype}, True, "lora.dtype")
            case "LLM norms" | "LLM biases" | "embeddings" | "head" | "vision tower":
                expect(part, {plain}, False, "model.dtype; never quantised, never trained")
            case _:
                what = f"{part.part} ({part.module}, {part.parameters:,} weights)"
                wrong.append(f"{what} is neither a part that is quantised here nor one that is trained")
    present = Counter(part.part for part in table)
    for name in ("projector", "LLM linears", "embeddings", "vision tower"):
        if not present[name]:
            wrong.append(f"there is no {name}")
    if bool(present["LoRA"]) != recipe.lora.enabled:
        wrong.append(f"lora.enabled is {str(recipe.lora.enabled).lower()}, but {present['LoRA']} LoRA rows were found")
    if wrong:
        raise UserError("the loaded model isn't what the recipe says:\n  - " + "\n  - ".join(wrong))


def render(table: list[Part]) -> Sheet:
    """The part table for a terminal; what trains is green."""
    out = Sheet(("part", "class", "dtype", "parameters", "trainable", "memory"), "parts", text=("class", "dtype"))
    for row in [*table, _sum(table, part="total", module="", dtype="")]:
        if row.part == "total":
            out.end_section()
        figures = (f"{row.parameters:,}", f"{row.trainable:,}", size_text(row.bytes))
        style = "bold" if row.part == "total" else "green" if row.trainable else ""
        out.add(row.part, row.module, row.dtype, *figures, style=style)
    return out


def render_fusions(language_model: nn.Module) -> list[Sheet]:
    """What Liger's kernels are used for, for a terminal; nothing where they are used for nothing."""
    found = fusions(language_model)
    if not any(one.fused for one in found):
        return []
    out = Sheet(("operation of the LLM", "modules with Liger's kernel", ""))
    for one in found:
        out.add(one.operation, f"{one.fused} of {one.total}", one.why_not)
    return [out]
