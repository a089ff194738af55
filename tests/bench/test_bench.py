"""The bench in toy shapes, so that it can't rot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.kernels import HAS_TRITON, skip_where_the_interpreter_is_broken

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """``python -m …`` from the repository's root, as a user would, without this test run's own settings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.long
def test_tiny_bench_prints_a_table_and_writes_results(tmp_path: Path) -> None:
    # With the workers that pyproject.toml asks for: the bench itself must see to it that it has one process.
    done = run("pytest", "bench/", "--tiny", "-p", "no:cacheprovider", "--results-dir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 workers" not in done.stdout
    for text in ("÷ naive", "Memory gates", "reference", "measured here: copy"):
        assert text in done.stdout
    if not torch.cuda.is_available():
        assert "needs a GPU" in done.stdout
    for text in ("whole step", "where the time goes", "BASIC adds"):
        assert text in done.stdout
    (found,) = (path for path in tmp_path.glob("*.json") if not path.stem.endswith("-step"))
    (plot,) = tmp_path.glob("*.png")
    assert str(found) in done.stdout and plot.read_bytes()[1:4] == b"PNG"
    result = json.loads(found.read_text(encoding="utf-8"))
    assert result["versions"]["torch"] == torch.__version__ and {"commit", "date", "device", "rates"} <= result.keys()
    rows = result["rows"]
    assert {row["operation"] for row in rows} == {"direction_loss", "row_scaling", "vocab_kl", "attention_mass"}
    for row in rows:
        if row["note"]:  # another project's kernel that failed here: its row says so
            continue
        assert row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] and row["peak_bytes"] > 0
        if row["who"] in ("naive eager", "reference"):
            assert row["gradient_error"] < 1e-5, row
    # Of naive code it is known exactly what it holds: K 4 layers stacked, weighted and summed.
    naive = [row for row in rows if row["operation"] == "direction_loss" and row["who"] == "naive eager"]
    assert naive and all(abs(row["bytes_per_element"] - 36) < 1 for row in naive)
    assert all(gate["held"] for gate in result["gates"])
    check_steps(json.loads(found.with_name(f"{found.stem}-step.json").read_text(encoding="utf-8"))["steps"])


def check_steps(steps: list[dict[str, Any]]) -> None:
    """The step bench's rows: the same loss, and every millisecond has a part it belongs to."""
    assert [step["way"] for step in steps] == ["off", "on", "naive"]
    off, on, naive = steps
    assert max(on["loss_error"], on["gradient_error"]) < 1e-4 and off["time_over_off"] == 1
    assert not any(name.startswith("BASIC") for name in off["parts_ms"])
    for step in (on, naive):
        basic = {name for name in step["parts_ms"] if name.startswith("BASIC")}
        assert {"BASIC: capture (v̂)", "BASIC: attention mass", "BASIC: DAS", "BASIC: SDS"} <= basic
        assert all(step["parts_ms"][name] > 0 for name in basic)
    for step in steps:
        assert step["p20_ms"] <= step["p50_ms"] <= step["p80_ms"]
        assert sum(step["parts_ms"].values()) == pytest.approx(step["p50_ms"], rel=0.3)
        assert step["parts_ms"]["LLM backward"] > step["parts_ms"]["LLM forward"] > step["parts_ms"]["LM loss"]
    assert naive["peak_bytes"] > on["peak_bytes"] >= off["peak_bytes"] > 0


def test_counted_flops_are_those_of_the_step(tmp_path: Path) -> None:
    """Against torch's own counter, which sees every product but those inside bitsandbytes: so without NF4."""
    from torch.utils.flop_counter import FlopCounterMode

    from basic_lite.rehearsal.cost import basic_share
    from bench import bench_step, flops
    from bench.bench_step import NAIVE, OFF, ON

    (case,) = bench_step.SHAPES["tiny"]
    recipe = case.recipe(tmp_path, torch.device("cpu"), quantization={"mode": "none"})
    ways = bench_step.ThreeWays(recipe, torch.device("cpu"))
    counted = flops.flops_of(recipe, ways.longest)

    def products(way: str) -> tuple[int, int]:
        """Of matrices, and batched ones."""
        with FlopCounterMode(display=False) as counter:
            ways.loss(way).backward()
        ways.longest.step.drop_gradients()
        seen = counter.get_flop_counts()["Global"]
        return sum(seen[op] for op in (torch.ops.aten.mm, torch.ops.aten.addmm)), seen.get(torch.ops.aten.bmm, 0)

    (off, _), (on, mass), (_, maps) = (products(way) for way in (OFF, ON, NAIVE))
    without_basic = sum(counted[name] for name in ("LLM linears", "LoRA", "LM loss", "vision tower", "projector"))
    assert off == pytest.approx(without_basic, rel=0.01)
    assert on - off == pytest.approx(counted["SDS"], rel=0.02)
    assert mass == pytest.approx(counted["attention mass"], rel=0.1)
    assert maps == pytest.approx(counted["attention"], rel=0.02)
    # The model has the proportions of 7B, so that BASIC's share of a step is 7B's.
    assert basic_share(flops.SEVEN_B) == pytest.approx(0.0113, rel=0.01)


INTERPRETED_CONTENDERS = """
from unittest import mock
import torch
from basic_lite_kernels.operations import choose
from bench import bench_attention_mass as mass, bench_direction_loss as direction
from bench import bench_row_scaling as scaling, bench_vocab_kl as vocab
from bench import measure, rows
from bench import same_bits

cpu, gpu = torch.device("cpu"), torch.device("cuda")  # nothing is put on the latter: it says who takes part
kernels = choose("triton", cpu)
mock.patch.object(rows, "choose", lambda *_: kernels).start()
cases = [
    (vocab, vocab.Shape(2, 3, 32, 50, torch.float32), (6, 32, 50, torch.float32, cpu)),
    (direction, direction.Shape(2, 3, 32, 4, torch.float32), None),
    (scaling, scaling.Shape(2, 3, 32, torch.float32), None),
    (mass, mass.Shape(2, 5, 2, 4, 4, 2, 16, torch.float32), None),
]
for bench, shape, arguments in cases:
    inputs = bench.Inputs.make(*(arguments or (shape, cpu)))
    exact_loss, exact_gradient = bench.exact(inputs)
    for contender in bench.contenders(shape, inputs, gpu):
        try:
            loss, gradient = contender.work()
        except ImportError as error:
            print("absent", contender.who, error)
            continue
        assert measure.relative(gradient, exact_gradient) < 1e-5, contender.who
        assert loss is None or measure.relative(loss, exact_loss) < 1e-5, contender.who
        print("right", contender.who)
for name, work in same_bits.works(kernels.operations, cpu, tiny=True).items():
    assert same_bits.differing_runs(work, lambda run: None, 1) == 0, name
"""


@pytest.mark.soak  # plain: the kernels' own tests, and the tiny bench, which checks too
@pytest.mark.skipif(not HAS_TRITON, reason="triton isn't installed, so there are no kernels")
def test_everyone_who_takes_part_on_a_gpu_computes_the_same() -> None:
    """Through the interpreter: ours, and other projects' kernels with the scaling that makes them comparable."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_"))}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRETED_CONTENDERS],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    skip_where_the_interpreter_is_broken(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    for who in ("triton", "reference", "naive eager"):
        assert f"right {who}\n" in done.stdout
    for who in ("Liger fused_linear_kl_div", "Liger fused_linear_jsd"):
        assert f"right {who}\n" in done.stdout or f"absent {who}" in done.stdout


def test_counted_bytes_of_the_direction_loss() -> None:
    """All of a step, the backward too; where v̂ stays in a card's L2 cache, only what must be read once."""
    from bench.bench_direction_loss import Shape, moved_bytes

    shape = Shape(1, 576, 4096, 16, torch.bfloat16)
    assert moved_bytes(shape, 0) == 172 * shape.M * shape.D
    assert moved_bytes(Shape(1, 576, 4096, 16, torch.float32), 0) == 204 * shape.M * shape.D
    needed = 6 * shape.M * shape.D
    assert moved_bytes(shape, needed - 1) == 172 * shape.M * shape.D
    assert moved_bytes(shape, needed) == 36 * shape.M * shape.D
