"""SmolLM2 with a CLIP tower and padded pictures: real programs open the export, and answer as the trained model."""

from __future__ import annotations

import pytest
from PIL import Image

from basic_lite.data.images import fit
from basic_lite.model.frontend import load_image_processor
from tests.support.answers import Prompt
from tests.support.clip_bug import largest_drift
from tests.support.programs import llama_cpp_answers, transformers_answers
from tests.support.served import Served, serve

pytestmark = pytest.mark.real

# Log-probabilities of llama.cpp are this close to a right computation from its f16 files.
CLOSE = 0.05


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve("clip", tmp_path_factory.mktemp("clip"))


def test_the_answers_depend_on_the_picture(served: Served) -> None:
    assert served.compared("ours", served.ours).changed >= 10


def test_transformers_answers_as_we_do(served: Served) -> None:
    answers = transformers_answers(served.folder, served.prompts, served.scratch)
    found = served.compared("transformers, float32", answers)
    assert found.equal >= 29 and found.changed >= 10
    assert found.largest < 1e-3


@pytest.mark.xfail(strict=True, reason="llama.cpp's bug with CLIP towers, ggml-org/llama.cpp issue 25814")
def test_llama_cpp_answers_as_we_do(served: Served) -> None:
    """When this passes, llama.cpp has the fix: then drop the mark, the test below, and the note of the export."""
    answers = llama_cpp_answers(served.folder / "gguf", served.prompts)
    found = served.compared("llama.cpp, f16", answers, "its bug with CLIP towers, and it resizes before it pads")
    assert found.equal >= 25


def test_llama_cpp_computes_what_its_bug_explains(served: Served) -> None:
    """Nothing else is wrong: with the bug computed here as well, the numbers agree. The pictures are squares."""
    prompts = [squared(served, prompt, n) for n, prompt in enumerate(served.prompts[:10])]
    answers = llama_cpp_answers(served.folder / "gguf", prompts)
    right = largest_drift(served.folder, prompts, answers, with_bug=False)
    wrong = largest_drift(served.folder, prompts, answers, with_bug=True)
    assert wrong < CLOSE < right, f"{wrong:.4f} from a computation with the bug, {right:.4f} from a right one"


def squared(served: Served, prompt: Prompt, number: int) -> Prompt:
    processor = load_image_processor(served.folder)
    path = served.scratch / f"square_{number}.png"
    with Image.open(prompt.image) as picture:
        fit(picture.convert("RGB"), "pad", processor).save(path)
    return Prompt(str(path), prompt.question)
