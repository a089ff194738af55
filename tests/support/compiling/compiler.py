"""Compile the Triton kernels for graphics cards that aren't there, and read what the compiler made of them.

Registers and stack come from the ``cuobjdump`` that Triton bundles, shared memory from the compiler's metadata (it is
requested at launch, so the binary doesn't name it). A stack means spilled registers: Triton has no other use for one.
Compiling takes 0.3 to 3 s a kernel and needs neither a GPU nor a driver; it can't tell whether a kernel is right
(the tests through the interpreter do) or fast (only a GPU does).

    python -m tests.support.compiling.table        every kernel, configuration and architecture
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Compute capability → most shared memory in bytes that one program may ask for, less what the driver keeps (CUDA C++
# programming guide, table of technical specifications per compute capability): 80 A100, 86 RTX 30, 89 RTX 40,
# 90 H100 and H200, 120 RTX 50.
SHARED_LIMIT_BYTES = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 120: 101_376}

# A few spilled registers cost nothing that could be measured; the table says where there are some.
STACK_LIMIT_BYTES = 32

# AMD's architectures: threads of a wave. MI300, Radeon 7000, Radeon 9000; each has 64 KiB of shared memory a program.
AMD_WAVES = {"gfx942": 64, "gfx1100": 32, "gfx1201": 32}
AMD_SHARED_LIMIT_BYTES = 65_536

_MATRIX_INSTRUCTION = re.compile(r"\b(?:wmma\.mma|mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
_AMD_SPILLS = re.compile(r"\.(?:sgpr|vgpr)_spill_count:\s+(\d+)")
_USAGE = re.compile(r"REG:(\d+)\s+STACK:(\d+)\s+SHARED:(\d+)\s+LOCAL:(\d+)")


class CompilingUnavailable(RuntimeError):
    """Says why kernels can't be compiled in this process."""


@dataclass(frozen=True)
class CompileCase:
    """One kernel in one configuration that a launcher can choose.

    Args:
        name: the kernel and its configuration, "kernel[BLOCK_V=4096, bf16]": unique over all cases.
        function: the ``@triton.jit`` function.
        signature: argument name → type ("*bf16", "*fp32", "i32", "i64", "fp32", …) of those that aren't constexpr. A
            pointer that may be None is left out here and None in ``constexprs``, as the runtime does it.
        constexprs: argument name → value.
        options: ``num_warps``, ``num_stages`` and others, as the launcher passes them.
        is_matrix: the kernel has a ``tl.dot`` that must become matrix instructions.
        unaligned: pointers that the launcher can't promise to be 16-byte aligned.
        divisible: integer arguments that are multiples of 16 in this case (the runtime compiles such calls apart).
    """

    name: str
    function: Any
    signature: dict[str, str]
    constexprs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, int] = field(default_factory=dict)
    is_matrix: bool = False
    unaligned: tuple[str, ...] = ()
    divisible: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compiled:
    """What one case became on one architecture: a row of the table."""

    name: str
    capability: int
    options: dict[str, int]
    registers: int
    stack_bytes: int
    shared_bytes: int
    has_matrix: bool
    is_matrix: bool

    def problems(self) -> list[str]:
        """What keeps this kernel from shipping; empty where it is fine."""
        found = []
        if self.stack_bytes > STACK_LIMIT_BYTES:
            found.append(f"{self.stack_bytes} bytes of stack: registers spill")
        limit = SHARED_LIMIT_BYTES[self.capability]
        if self.shared_bytes > limit:
            found.append(f"{self.shared_bytes} bytes of shared memory, and sm_{self.capability} has {limit}")
        if self.is_matrix and not self.has_matrix:
            found.append("a matrix kernel without matrix instructions")
        return [f"{self.name} on sm_{self.capability}: {problem}" for problem in found]


def compile_case(case: CompileCase, capability: int) -> Compiled:
    """Compile one case for one architecture, always anew.

    Raises:
        CompilingUnavailable: Triton, its backend or its ``cuobjdump`` is missing, or this process interprets
            kernels (``TRITON_INTERPRET``), which leaves nothing to compile.
    """
    binary = _compile(case, "cuda", capability, 32)
    registers, stack = _resource_usage(binary.asm["cubin"])
    return Compiled(
        case.name,
        capability,
        case.options,
        registers,
        stack,
        binary.metadata.shared,
        bool(_MATRIX_INSTRUCTION.search(binary.asm["ptx"])),
        case.is_matrix,
    )


def ptx_of(case: CompileCase, capability: int) -> str:
    """A case as PTX, NVIDIA's assembly before its own compiler.

    Raises:
        CompilingUnavailable: as ``compile_case``.
    """
    text: str = _compile(case, "cuda", capability, 32).asm["ptx"]
    return text


def amd_problems(case: CompileCase, architecture: str) -> list[str]:
    """What keeps a kernel from running on one of AMD's architectures, a key of AMD_WAVES; empty if nothing does.

    Raises:
        CompilingUnavailable: as ``compile_case``.
    """
    binary = _compile(case, "hip", architecture, AMD_WAVES[architecture])
    spilt = sum(map(int, _AMD_SPILLS.findall(binary.asm["amdgcn"])))
    found = [f"{spilt} registers spill"] if spilt else []
    if binary.metadata.shared > AMD_SHARED_LIMIT_BYTES:
        found.append(f"{binary.metadata.shared} bytes of shared memory, and there are {AMD_SHARED_LIMIT_BYTES}")
    return [f"{case.name} on {architecture}: {problem}" for problem in found]


def _compile(case: CompileCase, backend: str, architecture: int | str, wave: int) -> Any:
    """Triton's compiled kernel, made anew."""
    if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y"):
        raise CompilingUnavailable("TRITON_INTERPRET is set: kernels are interpreted in this process, not compiled")
    try:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
    except ImportError as error:
        raise CompilingUnavailable(f"triton can't be imported: {error}") from error
    names = case.function.arg_names
    missing = [name for name in names if (name in case.signature) == (name in case.constexprs)]
    unknown = [name for name in (*case.signature, *case.constexprs) if name not in names]
    if missing or unknown:
        raise ValueError(f"{case.name}: arguments {missing} need a type or a value (not both), {unknown} aren't known")
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = [
        index
        for index, name in enumerate(names)
        if (signature[name].startswith("*") and name not in case.unaligned) or name in case.divisible
    ]
    source = ASTSource(
        case.function,
        signature,
        {(names.index(name),): value for name, value in case.constexprs.items()},
        {(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        return triton.compile(source, target=GPUTarget(backend, architecture, wave), options=dict(case.options))


def _resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers a thread and stack bytes a thread of the kernel in a cubin."""
    import triton

    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([tool, "-res-usage", str(path)], capture_output=True, text=True, check=True).stdout
    usage = _USAGE.search(text)
    if usage is None:
        raise CompilingUnavailable(f"{tool} -res-usage gives no registers: {text!r}")
    registers, stack, _, local = (int(number) for number in usage.groups())
    return registers, stack + local


def format_table(rows: Iterable[Compiled]) -> str:
    """A Markdown table, one line per kernel and configuration; cells are registers / shared KiB of an architecture.

    A kernel that spills shows its stack behind these.
    """
    rows = list(rows)
    capabilities = sorted({row.capability for row in rows})
    cells = {(row.name, row.capability): row for row in rows}
    lines = [
        "| kernel | warps · stages | matrix | " + " | ".join(f"sm_{c}" for c in capabilities) + " |",
        "|---|---|---|" + "---|" * len(capabilities),
    ]
    for name in dict.fromkeys(row.name for row in rows):
        mine = [cells[name, c] for c in capabilities if (name, c) in cells]
        options = f"{mine[0].options.get('num_warps', 4)} · {mine[0].options.get('num_stages', 3)}"
        matrix = ("mma" if all(row.has_matrix for row in mine) else "MISSING") if mine[0].is_matrix else "–"
        columns = []
        for capability in capabilities:
            row = cells.get((name, capability))
            text = "" if row is None else f"{row.registers} / {row.shared_bytes / 1024:.1f}"
            columns.append(text + (f" stack {row.stack_bytes}" if row is not None and row.stack_bytes else ""))
        lines.append(f"| `{name}` | {options} | {matrix} | " + " | ".join(columns) + " |")
    return "\n".join(lines)
