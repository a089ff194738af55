"""SmolLM2 with a SigLIP tower and stretched pictures: real programs open the export and answer as the trained model."""

from __future__ import annotations

import pytest

from tests.support.programs import llama_cpp_answers, transformers_answers
from tests.support.served import Served, serve

# A training and three programs: five to ten minutes of a processor.
pytestmark = [pytest.mark.real, pytest.mark.soak]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve("siglip", tmp_path_factory.mktemp("siglip"))


def test_the_answers_depend_on_the_picture(served: Served) -> None:
    assert served.compared("ours", served.ours).changed >= 10


def test_transformers_answers_as_we_do(served: Served) -> None:
    answers = transformers_answers(served.folder, served.prompts, served.scratch)
    found = served.compared("transformers, float32", answers)
    assert found.equal >= 29 and found.changed >= 10
    assert found.largest < 1e-3


def test_llama_cpp_answers_as_we_do(served: Served) -> None:
    answers = llama_cpp_answers(served.folder / "gguf", served.prompts)
    found = served.compared("llama.cpp, f16", answers, "weights in f16, GELU of the projector in its tanh form")
    assert found.equal >= 28 and found.changed >= 10
    assert found.largest < 0.1
