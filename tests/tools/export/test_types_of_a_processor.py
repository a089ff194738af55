"""A processor without instructions for the export's number type checks it in float32, and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from basic_lite.tools.export import check
from basic_lite.tools.export.command import export
from tests.support.bundles import random_run
from tests.support.marks import rest_long
from tests.support.runs import quiet


@pytest.mark.parametrize("known", rest_long(False, True))
def test_the_check_computes_in_what_the_processor_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], known: bool
) -> None:
    opened, computed, rounded = check._open, [], []

    def watched(*given: Any) -> Any:
        model = opened(*given)
        computed.append(model.get_input_embeddings().weight.dtype)
        rounded.append(torch.equal(model.lm_head.weight, model.lm_head.weight.bfloat16().to(computed[0])))
        return model

    monkeypatch.setattr(check, "computes_in", lambda device, dtype: known or dtype == torch.float32)
    monkeypatch.setattr(check, "_open", watched)
    assert export(random_run(tmp_path), tmp_path / "out", dtype="bfloat16", samples=2, console=quiet())
    assert (computed, rounded) == ([torch.bfloat16 if known else torch.float32], [True])
    told = "the check computes in float32: this processor has no instructions for bfloat16"
    assert (told in " ".join(capsys.readouterr().err.split())) is not known


@pytest.mark.long
def test_other_merges_are_rounded_as_an_export_rounds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that the merge that wasn't written would look better than it is."""
    put, seen = check._put, []

    def watched(model: Any, *given: Any) -> None:
        put(model, *given)
        weights = [weight for name, weight in model.named_parameters() if name.endswith("gate_proj.weight")]
        seen.append(all(torch.equal(weight, weight.bfloat16().float()) for weight in weights))

    monkeypatch.setattr(check, "computes_in", lambda device, dtype: dtype == torch.float32)
    monkeypatch.setattr(check, "_put", watched)
    assert export(random_run(tmp_path), tmp_path / "out", dtype="bfloat16", samples=2, console=quiet())
    assert seen == [True, True]
