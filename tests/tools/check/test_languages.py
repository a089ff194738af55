"""Languages of one script are told apart, and a word alone is none."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from basic_lite.tools.check import languages
from basic_lite.tools.check.findings import _languages
from basic_lite.tools.check.languages import MISSING, UNSURE, Sampled, languages_of
from basic_lite.tools.check.texts import Texts

SAID = {
    "English": "There are three apples in the picture, and one of them is green.",
    "German": "Auf dem Bild sind drei Äpfel, und einer davon ist grün.",
    "French": "Il y a trois pommes sur l'image, et l'une d'elles est verte.",
    "Spanish": "Hay tres manzanas en la imagen y una de ellas es verde.",
    "Dutch": "Er staan drie appels op de foto en een daarvan is groen.",
    "Portuguese": "Há três maçãs na imagem e uma delas é verde.",
    "Russian": "На картинке три яблока, и одно из них зелёное.",
    "Ukrainian": "На малюнку три яблука, і одне з них зелене.",
    "Chinese": "图片里有三个苹果，其中一个是绿色的。",
    "Japanese": "写真にはりんごが三つあり、そのうち一つは緑色です。",
}


def test_languages_are_told_apart() -> None:
    assert languages_of([*SAID.values(), "yes", "ja", "sí", "a red circle"]) == {**dict.fromkeys(SAID, 1), UNSURE: 4}


def test_the_finding_has_shares_of_answers_and_questions() -> None:
    texts = Texts()
    for text, times in ((SAID["English"], 6), (SAID["German"], 3), ("ja", 1)):
        for _ in range(times):
            texts.said.add(text)
    texts.asked.add("<image>\n" + SAID["French"])
    texts.asked.add("12 + 5?")  # no letters, no language
    found = _languages(texts)
    assert (found.kind, found.count, found.mend) == ("fact", "3 languages", "")
    assert found.text == (
        "answers: English 60.0%, German 30.0%, not known 10.0%; questions: French 100.0%; a text of one to three words "
        "is too short to know its language"
    )
    assert _languages(Texts()).text == "answers: no letters; questions: no letters"


def test_without_the_package_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    monkeypatch.setattr(languages, "_model", languages._model.__wrapped__)  # it isn't kept
    found = _languages(Texts())
    assert (found.text, found.mend) == ("not looked at", MISSING) and "basic-lite[languages]" in MISSING


def test_no_room_for_the_model_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(languages, "_model", languages._model.__wrapped__)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    found = _languages(Texts())
    assert found.text == "not looked at" and "can't unpack its model (No such file" in found.mend


def test_the_sample_is_even() -> None:
    """Of 20,000 texts each tenth of the file has a tenth of the 2,000: a binomial share, 4 spreads wide."""
    sample = Sampled()
    for n in range(20_000):
        sample.add(f"text {n}")
    assert sample.met == 20_000 and len(set(sample.texts)) == len(sample.texts) == 2_000
    tenths = Counter(int(text.split()[1]) // 2_000 for text in sample.texts)
    assert all(abs(tenths[n] - 200) < 4 * (2_000 * 0.1 * 0.9) ** 0.5 for n in range(10))
