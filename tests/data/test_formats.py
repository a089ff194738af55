"""Formats of other programs, each with a sample as its own documentation has it, and what can be wrong with them."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from basic_lite.data.columns import COLUMNS
from basic_lite.data.conversation import IMAGE, conversation
from basic_lite.data.images import open_image
from basic_lite.data.problems import RecordProblem
from basic_lite.data.prompts import asked_as_trained, prompts_of, with_prompts_of_training
from basic_lite.data.records import Record
from basic_lite.data.sources import load_records
from basic_lite.data.turns import NamedRow, read_row
from basic_lite.recipe.schema import DataSection, SourceSection
from tests.support.data import write_image

ANSWER = "It is a red panda."
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "DATA.md"


def read(folder: Path, row: Any, **keys: Any) -> Record:
    """The one record of a JSON file."""
    (folder / "data.json").write_text(json.dumps([row]), encoding="utf-8")
    return load_records(SourceSection(path="data.json", **keys), root=folder)[0]


def said(record: Record) -> list[tuple[str, str]]:
    return [(turn.role, turn.text.replace(IMAGE, "<image>")) for turn in conversation(record)]


def data_url(folder: Path) -> str:
    data = write_image(folder / "inside.png", (5, 4)).read_bytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


USER = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "panda.png"}}]
# LLaVA: https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md
LLAVA = {
    "id": "997bb945-628d-4724-b370-b84de974a19f",
    "image": "panda.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": ANSWER}],
}
# LLaMA-Factory, data/README.md: sharegpt with pictures, as in data/mllm_demo.json; and alpaca.
SHAREGPT = {
    "messages": [
        {"content": "<image>What is it?", "role": "user"}, {"content": ANSWER, "role": "assistant"},
    ],
    "images": ["panda.png"],
}  # fmt: skip
ALPACA = {"instruction": "What is it?", "input": "", "output": ANSWER, "images": ["panda.png"]}
# OpenAI, "Vision fine-tuning".
OPENAI = {"messages": [{"role": "user", "content": USER[::-1]}, {"role": "assistant", "content": ANSWER}]}
# TRL, "Dataset formats", vision datasets: conversational, and prompt with completion.
ASKED = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
SAID = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
TRL = {"images": ["panda.png"], "messages": [ASKED, SAID]}
TRL_PAIR = {"images": ["panda.png"], "prompt": [ASKED], "completion": [SAID]}
# Qwen-VL's own examples.
QWEN_PART = {"type": "image", "image": "panda.png"}
QWEN = {"messages": [{"role": "user", "content": [QWEN_PART, ASKED["content"][1]]}, SAID]}  # type: ignore[index]
PAIR = {"image": "panda.png", "question": "What is it?", "answer": ANSWER}
VQA = {"img": "panda.png", "query": "What is it?", "answers": [ANSWER, "a bear"]}
# VQA v2's own annotations.
VQA_OWN = {"image": "panda.png", "question": "What is it?", "answers": [{"answer": ANSWER, "answer_id": 1}]}
COMPLETION = {"image": "panda.png", "prompt": "What is it?", "completion": ANSWER}

SAMPLES = [LLAVA, SHAREGPT, ALPACA, OPENAI, TRL, TRL_PAIR, QWEN, PAIR, VQA, VQA_OWN, COMPLETION]


@pytest.mark.parametrize("row", SAMPLES)
def test_every_format_says_the_same(tmp_path: Path, row: dict[str, Any]) -> None:
    write_image(tmp_path / "panda.png")
    record = read(tmp_path, row)
    assert said(record) == [("human", "<image>\nWhat is it?"), ("gpt", ANSWER)]
    (image,) = record.images
    assert open_image(image).size == (8, 6)


def test_the_documents_samples_say_the_same(tmp_path: Path) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = []
    for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL):
        while block := block.lstrip():
            row, end = json.JSONDecoder().raw_decode(block)
            rows.append(row)
            block = block[end:]
    assert len(rows) == 7
    for row in rows:
        assert said(read(tmp_path, row)) == [("human", "<image>\nWhat is it?"), ("gpt", "A cat.")], row


def test_the_documents_names_of_columns_are_those_that_are_known() -> None:
    rows = re.findall(r"^\| (image|question|answer) \| (.*) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    known = {ours: re.sub(r" \(.*?\)", "", names).split(", ") for ours, names in rows}
    assert known == {ours: list(COLUMNS[ours]) for ours in ("image", "question", "answer")}


@pytest.mark.parametrize("row", [TRL, TRL_PAIR, SHAREGPT, PAIR])
def test_they_survive_a_parquet_file(tmp_path: Path, row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow gives every part the same keys, with None where one has none."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_image(tmp_path / "panda.png")
    data = datasets.Dataset.from_list([row])
    for ours in {"image", "images"} & row.keys():
        feature = datasets.Image() if ours == "image" else datasets.List(datasets.Image())
        whole = str(tmp_path / "panda.png")
        data = data.remove_columns(ours).add_column(ours, [whole if ours == "image" else [whole]])
        data = data.cast_column(ours, feature)
    data.to_parquet(tmp_path / "data.parquet")
    record = load_records(SourceSection(parquet="data.parquet"), root=tmp_path)[0]
    assert said(record) == [("human", "<image>\nWhat is it?"), ("gpt", ANSWER)]
    assert open_image(record.images[0]).size == (8, 6)


def test_class_labels_are_words(tmp_path: Path) -> None:
    features = datasets.Features(
        {"image": datasets.Value("string"), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"image": ["a.png", "b.png", "c.png"], "label": [1, 0, None]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    records = load_records(SourceSection(saved="saved", prompt="What is it?"), root=tmp_path)
    assert [turn.text for turn in records[0].turns] == ["What is it?", "dog"]
    assert records[1].answer == "cat"
    with pytest.raises(RecordProblem, match="its 'label' is empty"):
        records[2]


def test_pictures_inside_messages(tmp_path: Path) -> None:
    write_image(tmp_path / "sub" / "ö 1.png", (3, 2))
    write_image(tmp_path / "own.png", (7, 2))
    absolute = (tmp_path / "sub" / "ö 1.png").as_uri()
    assert "%20" in absolute
    parts = [
        {"type": "image_url", "image_url": absolute},
        {"type": "image"},
        {"type": "text", "text": "and <image> and"},
        {"type": "image_url", "image_url": {"url": data_url(tmp_path), "detail": "low"}},
        {"type": "image", "path": "sub/ö 1.png"},
        {"type": "image", "url": "sub/ö 1.png"},
    ]
    row = {"messages": [{"role": "user", "content": parts}, SAID], "images": ["own.png", "inside.png"]}
    record = read(tmp_path, row)
    assert [open_image(image).size[0] for image in record.images] == [3, 7, 5, 5, 3, 3]
    assert said(record)[0][1].count("<image>") == 6


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [ASKED, SAID]}, "1 picture, 1 of them without a file, and the record lists none under 'images'"),
        ({**OPENAI, "images": ["b.png"]}, "1 picture, 0 of them without a file, and the record lists 1"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": USER}]}, "move the picture"),
        ({"image": "https://x.org/a.png", "caption": "x"}, "lies on the web; download it first"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": 5}]}, SAID]}, "its image is 5"),
        ({"caption": "x"}, "neither a picture nor a question"),
        ({"image": "a.png"}, "no conversations"),
        ({"instruction": "q", "output": "a", "history": [["only one"]]}, "its history has"),
    ],
)
def test_what_is_wrong_is_said_in_the_formats_own_words(tmp_path: Path, row: Any, expected: str) -> None:
    with pytest.raises(RecordProblem) as caught:
        conversation(read(tmp_path, row))
    assert expected in str(caught.value) and str(caught.value).startswith("data.json, record 1")
    assert "<image>" not in str(caught.value)


def test_a_broken_data_url_is_a_bad_image(tmp_path: Path) -> None:
    record = read(tmp_path, {"image": "data:image/png;base64,%%%", "caption": "x"})
    with pytest.raises(RecordProblem, match="can't be decoded"):
        open_image(record.images[0])


def test_what_goes_before_a_question(tmp_path: Path) -> None:
    alpaca = {
        "instruction": "Translate.", "input": "Hund", "output": "dog", "system": "Be short.",
        "history": [["Hello?", "Yes."]],
    }  # fmt: skip
    assert said(read(tmp_path, alpaca)) == [
        ("system", "Be short."), ("human", "Hello?"), ("gpt", "Yes."), ("human", "Translate.\nHund"), ("gpt", "dog")
    ]  # fmt: skip
    shared = {**LLAVA, "system": "Be short."}
    assert said(read(tmp_path, shared))[0] == ("system", "Be short.")
    assert said(read(tmp_path, {**LLAVA, "text": "other", "path": "other.txt"})) == said(read(tmp_path, LLAVA))


def test_a_prompt_is_drawn_by_the_records_number(tmp_path: Path) -> None:
    prompts = ["Describe it.", "What is there?", "Caption:"]
    rows = [{"image": "a.png", "caption": "x"}] * 300
    (tmp_path / "data.json").write_text(json.dumps(rows))
    section = SourceSection(path="data.json", prompt=prompts)
    drawn = [record.turns[0].text for record in load_records(section, root=tmp_path)]
    assert drawn == [record.turns[0].text for record in load_records(section, root=tmp_path)]
    assert set(drawn) == set(prompts) and min(Counter(drawn).values()) > 70
    assert len({tuple(drawn[n : n + 3]) for n in range(0, 300, 3)}) > 9  # no cycle
    bare = load_records(SourceSection(path="data.json"), root=tmp_path)
    asked = asked_as_trained(bare, DataSection(train=[section, SourceSection(path="other")]))
    assert [record.turns[0].text for record in asked] == drawn and asked[0].turns[1:] == bare[0].turns[1:]
    # Evaluation data that a run reads is asked in the same way, unless it has prompts of its own.
    data = DataSection(train=[section, SourceSection(path="other")])
    bare_source, own = SourceSection(path="e.csv"), SourceSection(path="e.csv", prompt="mine")
    assert with_prompts_of_training([bare_source, own], data) == [
        bare_source.model_copy(update={"prompt": list(prompts_of(section))}),
        own,
    ]
    assert asked_as_trained(asked, DataSection(train=SourceSection(path="x", prompt="new"))) == asked
    one = read(tmp_path, rows[0], prompt="Describe it.")
    assert said(one) == [("human", "<image>\nDescribe it."), ("gpt", "x")]
    assert said(read(tmp_path, rows[0])) == [("human", "<image>"), ("gpt", "x")]
    with pytest.raises(RecordProblem, match="question of its own"):
        read(tmp_path, PAIR, prompt="Describe it.")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["image", "image_url", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "text", "image", "image_url", "url", "path"]), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@given(content=JSON, images=JSON)
def test_a_content_is_read_or_refused(content: Any, images: Any) -> None:
    """Whatever a message holds, a record comes whose pictures fit its places, or one sentence of refusal."""
    row = {"messages": [{"role": "user", "content": content}, SAID], "images": images}
    try:
        got = read_row(NamedRow(row, {}, "/nowhere"), (), 1)
        turns = conversation(Record(1, "", "x", got.images, got.turns))
    except RecordProblem:
        return
    assert sum(turn.text.count(IMAGE) for turn in turns) == len(got.images)


@pytest.mark.parametrize("key", ["tool_calls", "function_call"])
def test_calls_of_tools_are_refused_in_the_rows_own_words(tmp_path: Path, key: str) -> None:
    user = {"role": "user", "content": "hot?"}
    call = {"role": "assistant", "content": "I look.", key: [{"name": "weather"}]}
    with pytest.raises(RecordProblem, match=f"turn 2 calls a tool \\('{key}'\\)"):
        read(tmp_path, {"messages": [user, call]})
    none = {"role": "assistant", "content": "I look.", key: None}
    assert said(read(tmp_path, {"messages": [user, none]}))[1] == ("gpt", "I look.")
    with pytest.raises(RecordProblem, match=r"turn 2 is from 'tool'; role must be user, assistant or system$"):
        read(tmp_path, {"messages": [user, {"role": "tool", "content": "21"}]})
    with pytest.raises(RecordProblem, match="it has no answer: no text follows a question"):
        said(read(tmp_path, {"messages": [user]}))
