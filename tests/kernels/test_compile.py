"""The kernels compile for every card they can run on: no spilled register, no more shared memory than there is.

A plain run compiles one case of each kernel for two architectures and a third of the others for one, in turn, and sees
that the table of registers, which has every case for every architecture, is of these very kernels. All of them take
minutes: `-m soak`, and `python -m tests.support.compiling.table`, which makes the table anew when a kernel changes.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import kernels as kit
from tests.support.compiling import compiler
from tests.support.compiling.compiler import SHARED_LIMIT_BYTES, STACK_LIMIT_BYTES, CompileCase, Compiled

if not kit.HAS_TRITON:
    pytest.skip("triton isn't installed, so there is nothing to compile", allow_module_level=True)
if kit.INTERPRETED:
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

from tests.support.compiling import table as compile_table
from tests.support.compiling.cases import all_cases

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

CASES = all_cases()
CAPABILITIES = list(SHARED_LIMIT_BYTES)


def tasks(*, everything: bool) -> list[Any]:
    seen: set[str] = set()
    chosen = []
    for index, case in enumerate(CASES):
        kernel = case.name.partition("[")[0]
        turn = [CAPABILITIES[(index + more) % len(CAPABILITIES)] for more in (0, 3)]
        mine = turn if kernel not in seen else turn[:1] if index % 3 == 0 else []
        seen.add(kernel)
        rest = [c for c in CAPABILITIES if c not in mine]
        chosen += [pytest.param(case, c, id=f"{case.name}-sm_{c}") for c in (rest if everything else mine)]
    return chosen


def check(case: CompileCase, capability: int) -> None:
    row = compiler.compile_case(case, capability)
    assert not row.problems()
    assert 0 < row.registers <= 255


@pytest.mark.parametrize("case, capability", tasks(everything=False))
def test_compiles(case: CompileCase, capability: int) -> None:
    check(case, capability)


def test_vocab_kl_rounds_products_before_it_adds() -> None:
    """z − maximum is exact only where both are rounded alike; a fused multiply-add made it 2 % wrong on an H200."""
    cases = [case for case in CASES if case.name.startswith("vocab_kl_kernel[bf16, both gradients")]
    assert cases
    for case in cases:
        assert "fma.rn.f32" not in compiler.ptx_of(case, 90)  # the logarithm itself has fma.rn.ftz.f32


@pytest.mark.soak
@pytest.mark.parametrize("case, capability", tasks(everything=True))
def test_compiles_elsewhere_too(case: CompileCase, capability: int) -> None:
    check(case, capability)


# attention_mass's tiles spill on AMD's cards, where it is left to the reference (``attention_mass.supports``).
ON_AMD = [case for case in CASES if not case.name.startswith("attention_mass")]


def amd_tasks(*, everything: bool) -> list[Any]:
    waves = list(compiler.AMD_WAVES)
    pairs = [(case, name, waves[index % 3] == name) for index, case in enumerate(ON_AMD) for name in waves]
    return [pytest.param(case, name, id=f"{case.name}-{name}") for case, name, turn in pairs if turn != everything]


@pytest.mark.parametrize("case, architecture", amd_tasks(everything=False)[::6])
def test_compiles_for_amd(case: CompileCase, architecture: str) -> None:
    assert compiler.amd_problems(case, architecture) == []


@pytest.mark.soak
@pytest.mark.parametrize("case, architecture", amd_tasks(everything=True))
def test_compiles_for_amd_elsewhere_too(case: CompileCase, architecture: str) -> None:
    assert compiler.amd_problems(case, architecture) == []


def test_the_amd_gate_sees_what_spills() -> None:
    case = next(case for case in CASES if case.name.startswith("attention_mass_sums[bf16, d=128"))
    assert "registers spill" in compiler.amd_problems(case, "gfx1100")[0]


def test_cases_have_names_of_their_own() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert any(case.is_matrix for case in CASES), "attention_mass multiplies matrices"


def test_the_compile_table_is_that_of_these_kernels() -> None:
    assert compile_table.why_not_current() is None


# ---- the gate itself


def spilling(capability: int) -> Compiled:
    """A product far too large for four warps."""
    import triton
    import triton.language as tl

    @triton.jit
    def product(x, y, B: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.arange(0, B)[:, None] * B + tl.arange(0, B)[None, :]
        a = tl.load(x + at)
        tl.store(y + at, tl.dot(a, a))

    case = CompileCase("product", product, {"x": "*bf16", "y": "*fp32"}, {"B": 128}, {"num_warps": 4}, True)
    return compiler.compile_case(case, capability)


def test_the_gate_sees_spills_and_matrix_instructions() -> None:
    row = spilling(86)
    assert row.has_matrix and row.stack_bytes > STACK_LIMIT_BYTES
    assert row.problems() == [f"product on sm_86: {row.stack_bytes} bytes of stack: registers spill"]
    table = compiler.format_table([row])
    assert "mma" in table and f"255 / 32.0 stack {row.stack_bytes}" in table


@pytest.mark.parametrize("stack_bytes", [0, 32, 40])
def test_a_few_spilled_registers_pass_and_are_said(stack_bytes: int) -> None:
    row = Compiled("k", 89, {"num_warps": 4}, 255, stack_bytes, 0, has_matrix=True, is_matrix=True)
    assert bool(row.problems()) == (stack_bytes > STACK_LIMIT_BYTES)
    assert ("stack" in compiler.format_table([row])) == (stack_bytes > 0)


def test_the_gate_sees_too_much_shared_memory_and_missing_matrix_instructions() -> None:
    row = Compiled("k", 89, {"num_warps": 4}, 64, 0, 101_377, has_matrix=False, is_matrix=True)
    assert [p.partition(": ")[2] for p in row.problems()] == [
        "101377 bytes of shared memory, and sm_89 has 101376",
        "a matrix kernel without matrix instructions",
    ]
    assert "MISSING" in compiler.format_table([row])


def test_a_case_names_every_argument_once() -> None:
    case = CASES[0]
    incomplete = CompileCase("k", case.function, dict(list(case.signature.items())[1:]), case.constexprs)
    with pytest.raises(ValueError, match="need a type or a value"):
        compiler.compile_case(incomplete, 86)


def test_an_interpreting_process_says_that_it_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(compiler.CompilingUnavailable, match="TRITON_INTERPRET"):
        compiler.compile_case(CASES[0], 86)
