"""Every configuration of every kernel that a launcher can choose, for ``compiler`` to compile.

float16 gets bfloat16's code but for the instruction's type, so most cases are of one 16-bit type.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from basic_lite_kernels import attention_mass, direction_loss, row_scaling, vocab_kl
from tests.support.compiling.compiler import CompileCase

TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


ROWS = (4096, 1024, 2048, 8192, 16384)
# What kernels that read a layer [B, T, D] are told of it.
OF_A_LAYER = dict.fromkeys(("T", "D", "stride_v", "stride_target", "stride_b", "stride_t"), "i32")
OF_A_LAYER |= {"hidden": "*bf16", "positions": "*i64", "massive": "*u8"}
# How a layer is scaled → the arguments that are None then.
SCALINGS = {"": ("factor", "massive"), "scaled": ("massive",), "scaled, massive": ()}
OF_A_PASS = {
    "direction_loss": ("hidden", "positions", "factor", "massive"),
    "capture_and_direction_loss": ("dtarget", "factor", "massive"),
    "scaled_capture_and_direction_loss": ("dtarget",),
}


def of_direction_loss() -> list[CompileCase]:
    """Cases with bf16 layers, float32 v and v̂, and the most that a pass can do, with layers scaled or as they are."""
    types = {"weight": "fp32"} | OF_A_LAYER
    cases = []

    def add(name: str, function: Any, options: dict[str, int], *, odd: bool = False, **constants: Any) -> None:
        constants["BLOCK_D"] = options["BLOCK_D"]
        signature = {key: types.get(key, "*fp32") for key in function.arg_names if key not in constants}
        divisible = () if odd else tuple(key for key in signature if key == "D" or key.startswith("stride"))
        warps = {"num_warps": options["num_warps"]}
        cases.append(CompileCase(name, function, signature, constants, warps, divisible=divisible))

    elementwise = direction_loss.ELEMENTWISE
    for first, (label, absent) in itertools.product((False, True), SCALINGS.items()):
        name = ", ".join(["first"] * first + [label] * bool(label))
        name = f"capture_layer[{name}]" if name else "capture_layer"
        constants = {"FIRST": first, **dict.fromkeys(absent)}
        add(name, direction_loss.capture_layer_kernel, elementwise, **constants)
    add("direction_loss_backward", direction_loss.direction_loss_backward_kernel, elementwise)
    for name, absent in OF_A_PASS.items():
        for D, kind in itertools.product(ROWS, ("cosine", "mse")):
            constants = {"COSINE": kind == "cosine", "FIRST": False, **dict.fromkeys(absent)}
            options = direction_loss.row_options(D)
            add(f"{name}[{kind}, BLOCK_D={D}]", direction_loss.direction_loss_kernel, options, **constants)
    odd = {"COSINE": True, "FIRST": False, **dict.fromkeys(OF_A_PASS["capture_and_direction_loss"])}
    options = direction_loss.row_options(4095)
    add("capture_and_direction_loss[D=4095]", direction_loss.direction_loss_kernel, options, odd=True, **odd)
    return cases


def of_row_scaling() -> list[CompileCase]:
    """Every row length, with and without massive dimensions."""
    cases = []
    for D, masked, odd in (*itertools.product(ROWS, (True, False), (False,)), (4095, True, True)):
        options = direction_loss.row_options(D)
        constants: dict[str, Any] = {"BLOCK_D": options["BLOCK_D"]} | ({} if masked else {"massive": None})
        kernel = row_scaling.row_scaling_kernel
        signature = {key: OF_A_LAYER.get(key, "*fp32") for key in kernel.arg_names if key not in constants}
        divisible = () if odd else ("D", "stride_b", "stride_t")
        name = f"row_scaling[{'D=4095' if odd else f'BLOCK_D={D}'}{', massive' * masked}]"
        warps = {"num_warps": options["num_warps"]}
        cases.append(CompileCase(name, kernel, signature, constants, warps, divisible=divisible))
    return cases


def of_vocab_kl() -> list[CompileCase]:
    """Outputs of the table's type, with and without excluded words."""
    logits = dict.fromkeys(("z_ptr", "change_ptr", "base_ptr", "kl_ptr"), "*fp32")
    numbers = {"stride": "i32", "V": "i32"} | dict.fromkeys(("scale", "lift", "lift_target"), "fp32")
    options = vocab_kl.OPTIONS
    cases = []

    def add(table: str, outputs: tuple[str, ...], excludes: bool) -> None:
        signature = logits | numbers | dict.fromkeys(outputs, f"*{table}")
        signature |= {"excluded_ptr": "*u8"} if excludes else {}
        absent = {"dz_ptr", "dtarget_ptr", "excluded_ptr"} - signature.keys()
        constants = {"BLOCK_V": vocab_kl.BLOCK_V} | dict.fromkeys(absent)
        label = ("loss only", f"{table}, gradient", f"{table}, both gradients")[len(outputs)]
        name = f"vocab_kl_kernel[{label}{', excluded' * excludes}]"
        kernel, odd = vocab_kl.vocab_kl_kernel, ("kl_ptr", "base_ptr")
        cases.append(CompileCase(name, kernel, signature, constants, options, unaligned=odd, divisible=("stride",)))

    for outputs, excludes in itertools.product(((), ("dz_ptr",), ("dz_ptr", "dtarget_ptr")), (False, True)):
        for table in ("bf16", "fp16", "fp32") if outputs else ("bf16",):
            add(table, outputs, excludes)
    return cases


def of_attention_mass() -> list[CompileCase]:
    """Head sizes of each tile, windows and caps. float32 and float16 with both or neither."""
    types = dict.fromkeys(("lse", "sums", "mass"), "*fp32") | dict.fromkeys(("rows", "columns"), "*i32")
    types |= {"valid": "*u8"} | dict.fromkeys(("scale", "cap"), "fp32")
    cases = []

    def add(name: str, function: Any, options: dict[str, Any], of_qk: str) -> None:
        constants = {key: value for key, value in options.items() if key in function.arg_names}
        more = {"query": of_qk, "key": of_qk}
        signature = {key: (types | more).get(key, "i32") for key in function.arg_names if key not in constants}
        compiler = {key: value for key, value in options.items() if key.startswith(("num_", "max"))}
        divisible = tuple(key for key in signature if key == "d" or key.startswith("stride"))
        is_matrix = "query" in signature
        cases.append(CompileCase(name, function, signature, constants, compiler, is_matrix, divisible=divisible))

    def add_passes(dtype: torch.dtype, d: int, window: bool, cap: bool) -> None:
        kernels = ("lse", attention_mass.attention_mass_lse_kernel), ("sums", attention_mass.attention_mass_sums_kernel)
        for (name, function), tiles in zip(kernels, attention_mass.choose_tiles(d, dtype), strict=True):
            size = f"{tiles.BLOCK_M}x{tiles.BLOCK_N}"
            label = f"{TYPES[dtype][1:]}, d={d}, {size}{', window' * window}{', cap' * cap}"
            constants = {"CAP": cap, "WINDOW": window, "LIST_BLOCK": attention_mass.LIST_BLOCK}
            options = constants | attention_mass.tile_options(d, dtype, tiles)
            add(f"attention_mass_{name}[{label}]", function, options, TYPES[dtype])

    add("attention_mass_add", attention_mass.attention_mass_add_kernel, attention_mass.ADDED, "")
    sizes = [(torch.bfloat16, d) for d in (128, 64, 256, 512)] + [(torch.float16, 128), (torch.float32, 128)]
    for (dtype, d), window, cap in itertools.product(sizes, (False, True), (False, True)):
        if window == cap or dtype == torch.bfloat16:
            add_passes(dtype, d, window, cap)
    return cases


OF_KERNEL_FILE = {
    "direction_loss": of_direction_loss,
    "row_scaling": of_row_scaling,
    "vocab_kl": of_vocab_kl,
    "attention_mass": of_attention_mass,
}


def all_cases() -> list[CompileCase]:
    """The cases of every kernel file."""
    return [case for cases in OF_KERNEL_FILE.values() for case in cases()]
