"""``basic-lite chat``: ask a trained model about a picture."""

from __future__ import annotations

import sys
from pathlib import Path

from basic_lite.console import quiet_libraries
from basic_lite.data.images import ImageRef, check_image
from basic_lite.data.problems import RecordProblem
from basic_lite.data.records import IMAGE_PLACEHOLDER, Record, Turn
from basic_lite.errors import UserError
from basic_lite.model.load import pick_device
from basic_lite.tools.answer import answer, asked_otherwise, chat_format
from basic_lite.train.restore import load_trained

MAX_NEW_TOKENS = 256


def chat(run: Path, image: Path, question: str | None, device: str = "auto") -> None:
    """Answer a question about ``image``, or questions from standard input until an empty line. Answers go to stdout.

    Raises:
        UserError: no usable bundle, or the picture can't be read.
    """
    quiet_libraries()
    picture = ImageRef.of_file(image)
    try:
        check_image(picture, "open")
    except RecordProblem as problem:
        raise UserError(f"{image}: {problem}") from problem
    loaded, bundle = load_trained(run, pick_device(device, "--device"))
    recipe = bundle.recipe
    form = chat_format(recipe, loaded)
    if note := asked_otherwise(recipe, form):
        print(note, file=sys.stderr)

    def ask(text: str) -> str:
        record = Record(1, "", "chat", (picture,), (Turn("human", f"{IMAGE_PLACEHOLDER}\n{text}"),))
        return answer(
            loaded, form, [record], image_fit=recipe.data.image_fit, batch_size=1, max_new_tokens=MAX_NEW_TOKENS
        )[0]

    if question is not None:
        print(ask(question))
        return
    while True:
        if sys.stdin.isatty():
            print("question (empty line to stop): ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        print(ask(line), flush=True)
