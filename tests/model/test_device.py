"""The device is said first, and a CPU where a GPU was to be expected is a warning with its mend."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from basic_lite.model import device as devices
from basic_lite.model.device import GpuFacts, look_for_gpu, tell_device, warn_of_slow_types, why_no_gpu

CPU_BUILD = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/"
SMI = """
| NVIDIA-SMI 550.54.14              Driver Version: 550.54.14      CUDA Version: 12.4     |
"""


def facts(**changes: Any) -> GpuFacts:
    base: dict[str, Any] = {"torch_version": "2.13.0+cu130", "built_for": "13.0", "card": True}
    return GpuFacts(**{**base, "driver": "580.65.06", "driver_cuda": "13.0", **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # Windows' torch of PyPI.
        ({"built_for": None, "torch_version": "2.13.0+cpu"}, ["2.13.0+cpu is a build for CPUs", CPU_BUILD + "cu130"]),
        ({"built_for": None, "driver_cuda": "12.4"}, [CPU_BUILD + "cu126"]),
        ({"built_for": None, "driver": None, "driver_cuda": None}, [CPU_BUILD + "cu130"]),
        (
            {"driver": "550.54.14", "driver_cuda": "12.4"},
            ["driver 550.54.14 runs CUDA up to 12.4", "needs 13.0", "to 580 or newer", CPU_BUILD + "cu126"],
        ),
        ({"driver": "470.1", "driver_cuda": "11.4"}, ["runs CUDA up to 11.4", "to 580 or newer"]),
        ({"visible": ""}, ["CUDA_VISIBLE_DEVICES is ''", "unset it"]),
        ({"visible": "-1"}, ["CUDA_VISIBLE_DEVICES is '-1'"]),
        # A driver of the same major number runs newer minor ones.
        ({"built_for": "13.2"}, ["can't open it", "torch.zeros(1).cuda()", "--gpus all"]),
        ({"visible": "0"}, ["can't open it"]),
    ],
)
def test_a_card_that_is_not_used_has_a_mend(changes: dict[str, Any], words: list[str]) -> None:
    text = why_no_gpu(facts(**changes))
    assert text is not None and "this machine has an NVIDIA card" in text
    for word in words:
        assert word in text, text


def test_nothing_is_said_without_a_card_and_no_old_build_to_an_older_driver() -> None:
    assert why_no_gpu(facts(card=False, built_for=None)) is None
    old = why_no_gpu(facts(driver="470.1", driver_cuda="11.4"))
    assert old is not None and "pip install" not in old  # no build of this torch runs there


def test_the_driver_is_read_from_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_output_of", lambda command: SMI)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    found = look_for_gpu()
    assert (found.card, found.driver, found.driver_cuda, found.visible) == (True, "550.54.14", "12.4", "-1")
    monkeypatch.setattr(devices, "_output_of", lambda command: "")
    monkeypatch.setattr(devices, "_driver_files", list)
    assert not look_for_gpu().card


@pytest.mark.parametrize("asked", ["auto", "cpu"])
def test_the_warning_is_for_auto_alone(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setattr(devices, "look_for_gpu", lambda: facts(built_for=None, torch_version="2.13.0+cpu"))
    said: list[str] = []
    tell_device(torch.device("cpu"), asked, said.append, dtype=torch.float32)
    assert said[0].startswith("device: CPU (") and said[0].endswith(f", float32, torch {torch.__version__}")
    assert [line.startswith("warning: ") for line in said[1:]] == [True] * (asked == "auto")


def test_a_missing_or_failing_program_says_nothing() -> None:
    assert devices._output_of(["no-such-program-here"]) == ""
    assert devices._output_of(["python3", "-c", "raise SystemExit(1)"]) == ""


@pytest.mark.parametrize("known", [False, True])
def test_a_type_without_instructions_is_told(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    monkeypatch.setattr(devices, "computes_in", lambda device, dtype: known or dtype.itemsize == 4)
    said: list[str] = []
    chosen = {"model.dtype=float32": torch.float32, "training.autocast=off": torch.bfloat16}
    warn_of_slow_types(torch.device("cpu"), chosen, said.append)
    assert [line.endswith(" Set training.autocast=off") and "for bfloat16:" in line for line in said] == [True] * (
        not known
    )


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch can't tell here")
def test_what_has_no_instructions_is_slow() -> None:
    """By the clock, on this very processor: 50 times as long without them, at most a few times with them."""
    cpu, seconds = torch.device("cpu"), {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(256, 256, dtype=dtype)
        matrix @ matrix  # made ready
        took = []
        for _ in range(4):
            started = time.process_time()
            matrix @ matrix
            took.append(time.process_time() - started)
        seconds[dtype] = min(took)
    assert devices.computes_in(cpu, torch.float32)
    assert devices.computes_in(cpu, torch.bfloat16) is (seconds[torch.bfloat16] < 12 * seconds[torch.float32])
