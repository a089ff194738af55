"""The loader's bench in a toy size, so that it can't rot."""

import torch

from bench import loader


def test_it_runs(capsys) -> None:  # type: ignore[no-untyped-def]
    torch.set_num_threads(1)
    found = loader.run(loader.TINY, loader.index)
    printed = capsys.readouterr().out
    assert [one["how"] for one in found["reading"]] == ["square", "pad"]
    assert all(one["sample_ms"] > 0 and 0 < one["pixels_share"] < 2 for one in found["reading"])
    assert found["index"]["records"] == loader.TINY.records and found["index"]["wall_s"] > 0
    assert found["jpeg_draft"]["decoded"] == (100, 75) and found["jpeg_draft"]["mean_difference"] > 0
    assert "bare Pillow" in printed and "grey levels" in printed
