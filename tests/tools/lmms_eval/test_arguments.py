"""What lmms-eval's command line, its tasks and their pictures may ask of a run, and how the rest is refused."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from basic_lite.errors import UserError
from basic_lite.tools.chat.dialogue import MAX_NEW_TOKENS
from basic_lite.tools.lmms_eval.arguments import Opening, generation, opening
from basic_lite.tools.lmms_eval.pictures import references, shown_by
from tests.support.data import write_image

ROOT = Path(__file__).parents[3]
# What lmms-eval hands over where nobody gives an option.
UNSAID = {"batch_size": 1, "max_batch_size": None, "device": None}


def test_the_entry_point_leads_to_the_manifest_and_that_to_the_class() -> None:
    """Read, not imported: lmms-eval need not be there. tests/real/test_lmms_eval.py takes the same way with it."""
    group = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    module, function = group["lmms_eval.models"]["basic_lite"].split(":")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    (named,) = re.findall(r'simple_class_path="([\w.]+)\.(\w+)"', source)
    assert f"def {function}()" in source and 'model_id="basic_lite"' in source
    assert f"class {named[1]}(lmms)" in (ROOT / f"{named[0].replace('.', '/')}.py").read_text(encoding="utf-8")


def test_a_run_is_opened_as_the_command_line_says() -> None:
    assert opening({"run": "runs/x"}, UNSAID) == Opening("runs/x", "auto", 1)
    assert opening({"run": "runs/x"}, {**UNSAID, "batch_size": "16", "device": "cpu"}) == Opening("runs/x", "cpu", 16)
    assert opening({"run": "runs/x", "device": "cuda"}, UNSAID).device == "cuda"


@pytest.mark.parametrize(
    ("given", "options", "says"),
    [
        ({}, {}, "--model_args names no run; give --model_args run=runs/NAME"),
        ({"run": ""}, {}, "names no run"),
        ({"run": 7}, {}, r"run=7: lmms-eval reads no folder there; write run=\./7"),
        ({"run": True}, {}, r"write run=\./True"),
        ({"pretrained": "x"}, {}, r"'pretrained'.* takes run and device; did you mean run\?"),
        ({"run": "x", "devise": "cpu"}, {}, r"takes run and device \(nearest: 'device'\)"),
        ({"run": "x", "batch_size": 4}, {}, "give --batch_size N instead"),
        ({"run": "x", "device": "cpu"}, {"device": "cuda"}, "name two devices; give one of them"),
        ({"run": "x"}, {"batch_size": "auto"}, "--batch_size is 'auto'; give a number"),
        ({"run": "x"}, {"batch_size": "0"}, "--batch_size is '0'"),
        ({"run": "x"}, {"max_batch_size": 8}, "give --batch_size N"),
    ],
)
def test_bad_arguments_are_refused(given: dict[str, Any], options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        opening(given, {**UNSAID, **options})


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False},
        {"temperature": 0.2, "do_sample": False},
        {"temperature": 0.0, "do_sample": True},
        {"top_p": None, "top_k": 1, "repetition_penalty": 1.0, "num_return_sequences": None, "seed": 0},
    ],
)
def test_what_the_likeliest_answer_satisfies_is_taken(asked: dict[str, Any]) -> None:
    found = generation({**asked, "max_new_tokens": 5}, "task t")
    assert (found.max_new_tokens, found.until, found.note) == (5, (), "")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"temperature": 0.2}, r"temperature=0\.2 do_sample=None.*--gen_kwargs temperature=0,do_sample=False"),
        ({"do_sample": True}, "its answers are drawn"),
        ({"temperature": "hot"}, "temperature='hot'; give 0"),
        ({"num_beams": 5}, "num_beams=5.*--gen_kwargs num_beams=1"),
        ({"repetition_penalty": 1.2}, r"repetition_penalty=1\.2"),
        ({"visual_cot": True}, "'visual_cot', which a run can't follow; take it out"),
        ({"max_new_tokens": 0}, "max_new_tokens=0; give a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens=True"),
        ({"until": 7}, "until=7; give a text"),
    ],
)
def test_what_it_does_not_satisfy_is_refused(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"^task t has .*{says}"):
        generation(asked, "task t")


def test_an_answer_ends_at_the_first_text_that_ends_it() -> None:
    found = generation({"max_new_tokens": 5, "until": ["\n\n", "", "Q:"]}, "task t")
    assert found.ended("red \n\nblue Q: x") == "red" and found.ended("red Q: blue \n\n") == "red"
    assert found.ended("red\nblue") is None
    assert generation({"max_new_tokens": 5, "until": "."}, "task t").ended("red. blue") == "red"


def test_what_a_run_does_otherwise_than_asked_is_said() -> None:
    found = generation({"image_aspect_ratio": "pad"}, "task t")
    assert found.max_new_tokens == MAX_NEW_TOKENS
    assert "image_aspect_ratio=pad; the run's own data.image_fit is used" in found.note
    assert f"{MAX_NEW_TOKENS} tokens at most" in found.note


def test_still_pictures_are_taken_in_each_form(tmp_path: Path) -> None:
    file = write_image(tmp_path / "a.PNG", size=(4, 4))
    image = Image.open(file)
    found = references([image, str(file), {"bytes": file.read_bytes(), "path": None}], "task t, question 1")
    assert len(found) == 3
    assert shown_by(None, "t") == [] and shown_by([], "t") == [] and shown_by(image, "t") == [image]


@pytest.mark.parametrize(
    "visual",
    [
        "clip.mp4",
        {"array": [0.0], "sampling_rate": 8000},
        {"type": "video", "url": "x.mp4"},
        np.zeros((2, 4, 4, 3)),
        None,
    ],
)
def test_what_is_no_still_picture_is_refused(visual: Any) -> None:
    with pytest.raises(UserError, match=r"^task t, question 1: (it shows a (video|sound)|a picture is a path)"):
        references([visual], "task t, question 1")
