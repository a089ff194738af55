"""What must not change a run's result, in one table: how a step is cut, kept, read, padded, resumed.

``ELSEWHERE`` names the tests of what takes more than a run: a launch, a card, Triton's interpreter.
"""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from basic_lite.training.differences import differences
from tests.support.marks import rest_long
from tests.support.runs import (
    LOUD,
    WHOLE,
    assert_same_terms,
    assert_same_weights,
    run,
    steps_of,
    tiny_recipe,
    write_data,
)

BASE = {**WHOLE, **LOUD, "training.max_steps": 5, "training.save_every": 1, "training.keep": 9, "lora.dropout": 0.0}
# Of the runs that are compared with these, only the end is looked at; the first of them saves as often, too.
SELDOM = {**BASE, "training.save_every": 99}
# Recomputed layers draw the same dropout; other micro-batches would draw another.
DROPOUT = {"lora.dropout": 0.3}
EXACT: dict[str, float] = {"rtol": 0, "atol": 0}
# Adam's first steps are sign-like, so rounding of tiny gradients is magnified; the rate is 1e-3.
CLOSE: dict[str, float] = {"rtol": 0, "atol": 5e-5}

# Of each: what both runs have, what the second has besides, how near the weights are.
SAME: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, float]]] = {
    "again": (DROPOUT, {"training.save_every": 1}, EXACT),
    "micro-batch 1, accumulated 4 times": ({}, {"training.micro_batch": 1}, CLOSE),
    "micro-batch 4, at once": ({}, {"training.micro_batch": 4}, CLOSE),
    "no layer recomputed": (DROPOUT, {"training.gradient_checkpointing": False}, EXACT),
    "three layers recomputed": (DROPOUT, {"training.gradient_checkpointing": 3}, EXACT),
    "a worker reads": (DROPOUT, {"data.workers": 1}, EXACT),
    "padding on the left": ({}, {"data.padding_side": "left"}, CLOSE),
    "logged and saved seldom": (DROPOUT, {"training.log_every": 3}, EXACT),
}
TESTS = Path(__file__).parents[1]
# Where each of the others is held: file and test, one that CI runs ("kernels": on a card, and in its slow run).
ELSEWHERE = {
    "two processes": ("training/test_processes.py", "test_two_processes_make_the_steps_of_one"),
    "a plan that is chosen": ("training/test_plan.py", "test_the_result_is_the_recipes_own"),
    "a plan that is fallen to": ("training/test_plan.py", "test_out_of_memory_falls_to_the_next_plan"),
    "kernels": ("training/test_kernels_in_a_run.py", "test_a_run_with_kernels_is_a_run_without"),
    "kernels in one micro-batch": ("supervision/test_supervision_kernels.py", "test_kernels_in_place_of_the_reference"),
    "each number of layers recomputed": ("model/test_recompute.py", "test_the_same_bits_whatever_the_number"),
    "layer inputs and tower on the host": ("model/test_offload_run.py", "test_a_run_with_both_is_the_same_run"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_others_are_held_where_the_table_says(name: str) -> None:
    path, test = ELSEWHERE[name]
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == test)
    marks = [ast.unparse(mark) for mark in found.decorator_list]
    assert not [
        mark for mark in marks if mark.startswith(("pytest.mark.soak", "pytest.mark.skip", "pytest.mark.xfail"))
    ]
    assert "assert" in ast.unparse(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data, and a run for each setting that the runs of the table share."""
    folder = tmp_path_factory.mktemp("invariants")
    write_data(folder, 13, text_only=3)
    for name, changes in (("plain", {}), ("dropout", DROPOUT)):
        run(folder, {**BASE, **changes, "name": name})
    return folder


@pytest.mark.parametrize("name", SAME)
def test_the_result_is_the_same(folder: Path, name: str) -> None:
    shared, changes, near = SAME[name]
    first = folder / "runs" / ("dropout" if shared else "plain")
    other = run(folder, {**SELDOM, **shared, **changes, "name": f"other{list(SAME).index(name)}"})
    if changes.get("training.log_every", 1) == 1:
        assert_same_terms(first, other, rel=2e-5 if near is CLOSE else 0)
    assert_same_weights(first / "final", other / "final", **near)


@pytest.mark.parametrize("step", rest_long(3, 1, 4))
def test_wherever_it_is_resumed(folder: Path, step: int) -> None:
    other = folder / "runs" / f"resumed{step}"
    shutil.copytree(folder / "runs" / "dropout", other)
    run(folder, {**BASE, **DROPOUT, "name": other.name}, resume=True, checkpoint=step)
    assert_same_terms(folder / "runs" / "dropout", other, rel=0)
    assert_same_weights(folder / "runs" / "dropout" / "final", other / "final")


@pytest.mark.parametrize("order", rest_long(-1, 1))
def test_however_its_records_are_cut_into_files(folder: Path, order: int) -> None:
    """And in whatever order the files are named."""
    records = json.loads((folder / "data.json").read_text())
    parts = {"a.json": records[:5], "b.jsonl": records[5:]}
    (folder / "a.json").write_text(json.dumps(parts["a.json"]))
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, parts["b.jsonl"])))
    sources = [{"path": str(folder / name), "image_dir": str(folder / "images")} for name in parts][::order]
    other = run(folder, {**SELDOM, **DROPOUT, "name": f"cut{order}", "data.train": sources})
    assert_same_terms(folder / "runs" / "dropout", other, rel=0)
    assert_same_weights(folder / "runs" / "dropout" / "final", other / "final")


def test_the_order_of_sources_is_no_change_of_the_recipe(folder: Path) -> None:
    sources = [{"path": str(folder / name)} for name in ("a.json", "b.json")]
    one, two = (tiny_recipe(folder, {"data.train": order}) for order in (sources, sources[::-1]))
    assert not differences(one, two)
    assert differences(one, tiny_recipe(folder, {"data.train": sources[:1]}))


def test_another_seed_is_another_run(folder: Path) -> None:
    """What the comparisons above would see."""
    other = run(folder, {**SELDOM, **DROPOUT, "name": "seed", "seed": 1})
    assert steps_of(other)[-1]["lm"] != steps_of(folder / "runs" / "dropout")[-1]["lm"]
    with pytest.raises(AssertionError):
        assert_same_weights(folder / "runs" / "dropout" / "final", other / "final", **CLOSE)
