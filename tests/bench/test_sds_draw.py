"""The bench of SDS's draws on a run: the terms it takes are those of the loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from basic_lite.data.prepare import prepare_data
from basic_lite.supervision.calibration import moved
from basic_lite.training.assembly import supervise
from basic_lite.training.bundle import load_trained
from bench.sds_draw import line, run_terms
from tests.support.runs import run


def test_a_runs_terms_add_up_to_its_loss(tmp_path: Path) -> None:
    folder = run(tmp_path, {"training.max_steps": 1})
    terms = run_terms(folder)
    loaded, bundle = load_trained(folder, torch.device("cpu"))
    supervision = supervise(bundle.recipe, loaded, lambda text: None)
    assert supervision is not None
    totals = []
    data = prepare_data(bundle.recipe, loaded.frontend, say=lambda text: None)
    for batch in moved(data.batches_with_images(16, 4), supervision.device):
        with supervision.capture(supervision.layout(batch)) as captured:
            loaded.model.model(**{name: x for name, x in batch.items() if name != "labels"}, use_cache=False)
        totals.append(float(supervision.losses(captured).sds))
    assert len(terms) == 12 and sum(float(t.sum()) for t in terms) / 4 == pytest.approx(sum(totals), rel=1e-4)
    assert line("tiny", terms[:1], (len(terms[0]),), 3) == "| tiny | 0.0% / 0.0% |"
