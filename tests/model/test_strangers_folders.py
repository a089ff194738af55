"""A model's folder that a stranger has changed, given to every command that takes one: refused in one sentence."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaProcessor

from basic_lite.cli import main
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.model.frontend import load_image_processor
from basic_lite.model.load import load_base
from basic_lite.recipe import dump_recipe, load_recipe
from basic_lite.tools.chat.arguments import picture
from basic_lite.tools.chat.dialogue import Message
from basic_lite.tools.chat.of_folder import FolderSpeaker
from basic_lite.tools.chat.speaker import Manner
from basic_lite.training.answer import answer, chat_format
from basic_lite.training.assembly import preflight
from tests.support.bundles import write_random_bundle
from tests.support.fuzzing import require_good
from tests.support.models import tiny_tokenizer, write_llava
from tests.support.runs import whole_recipe

pytestmark = pytest.mark.long

CPU = torch.device("cpu")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' : ' }}{% for part in m['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)
WEIGHTS, INDEX, GENERATION = "model.safetensors", "model.safetensors.index.json", "generation_config.json"
# Of each kind of folder: a weight that all who open it need.
NEEDED = {
    "llava": "model.multi_modal_projector.linear_1.weight",
    "llm": "model.layers.0.mlp.down_proj.weight",
    "vision": "encoder.layers.0.mlp.fc1.weight",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of each kind, pictures, recipes and a run."""
    folder = tmp_path_factory.mktemp("work")
    changes = {"training.max_steps": 1, "output": str(folder / "new"), "quantization.mode": "none"}
    composed = whole_recipe(folder, changes)
    write_chat_llava(folder / "llava")
    on_base = composed.model.model_copy(update={"base": str(folder / "llava"), "llm": None, "vision": None})
    (folder / "composed.yaml").write_text(dump_recipe(composed))
    # LLaVA-1.5's own chat template ends no answer, so such a base is trained with v1.
    data = composed.data.model_copy(update={"template": "v1"})
    (folder / "base.yaml").write_text(dump_recipe(composed.model_copy(update={"model": on_base, "data": data})))
    write_random_bundle(folder / "runs" / "tiny" / "final", composed)
    for kind in NEEDED:
        shutil.copytree(folder / kind, folder / "whole" / kind)
    return folder


@pytest.fixture
def place(work: Path) -> Iterator[Path]:
    """The folder, in which the models become whole again."""
    yield work
    shutil.rmtree(work / "else", ignore_errors=True)
    for kind in NEEDED:
        shutil.rmtree(work / kind)
        shutil.copytree(work / "whole" / kind, work / kind)


def write_chat_llava(folder: Path) -> None:
    write_llava(folder)
    processor = LlavaProcessor(
        load_image_processor(folder),
        tiny_tokenizer(("<image>",)),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)


def weight(name: str, change: Callable[[dict[str, torch.Tensor], str], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state, next(one for one in state if one.endswith(NEEDED[folder.name].removeprefix("model."))))
        save_file(state, folder / WEIGHTS, {"format": "pt"})

    edit.__name__ = name
    return edit


def _spoil(state: dict[str, torch.Tensor], name: str) -> None:
    state[name].view(-1)[0] = float("nan")


def _index(folder: Path) -> None:
    (folder.parent / "else").mkdir()
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder.parent / "else" / WEIGHTS)
    places = dict.fromkeys(state, f"../else/{WEIGHTS}")
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def _pickles(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../else/a.bin"}}))


def _adapter(folder: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "/nowhere", "r": 1, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def _ends(value: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / GENERATION).write_text(json.dumps({"eos_token_id": value}))

    return edit


def _tokenizer(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        whole = json.loads((folder / "tokenizer.json").read_text())
        change(whole)
        (folder / "tokenizer.json").write_text(json.dumps(whole))

    return edit


def _bomb(whole: dict[str, Any]) -> None:
    rule = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 50}
    whole["normalizer"] = {"type": "Sequence", "normalizers": [rule] * 5}


# What is done to a folder, and what is said of it.
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights elsewhere": (_index, INDEX),
    "pickles elsewhere": (_pickles, "pytorch_model.bin.index.json"),
    "NaN": (weight("NaN", _spoil), "aren't finite"),
    "a weight less": (weight("less", lambda state, name: state.pop(name)), "lacks 1 of the weights|has no tensor"),
    "an adapter": (_adapter, "has an adapter in it"),
    "ids without an embedding": (
        _tokenizer(lambda whole: whole["model"]["vocab"].update(red=100_000)),
        r"ids up to 100,000 \('red'\), .* 0 to \d+;",
    ),
    "a tokenizer that fills the memory": (_tokenizer(_bomb), "up to 312,500,000 times as long"),
    "end tokens of text": (_ends("x"), "'x' for a token \\(eos_token_id\\)"),
    "an end token beyond": (_ends([2, 10**6]), "1000000 for a token \\(eos_token_id\\)"),
}  # fmt: skip
UNWEIGHED = ("an adapter", "ids without an embedding", "a tokenizer that fills the memory")
OF_WEIGHTS = ("weights elsewhere", "pickles elsewhere", "NaN", "a weight less")
# Each command that takes a model's folder: the folder, the words, what it is called there, and the faults tried.
COMMANDS: dict[str, tuple[str, list[str], str, Sequence[str]]] = {
    "chat": ("llava", ["chat", "{w}/llava", "{w}/images/0.png", "what ?"], "MODEL", tuple(FAULTS)),
    "inspect": ("llava", ["inspect", "{w}/llava", "{w}/images/0.png"], "MODEL", tuple(FAULTS)),
    "train, base": ("llava", ["train", "{w}/base.yaml"], "model.base", tuple(FAULTS)),
    "train, llm": ("llm", ["train", "{w}/composed.yaml"], "model.llm", tuple(FAULTS)),
    "train, vision": ("vision", ["train", "{w}/composed.yaml"], "model.vision", (*OF_WEIGHTS, "an adapter")),
    "dry run": ("llm", ["train", "{w}/composed.yaml", "--dry-run"], "model.llm", UNWEIGHED),
    "estimate": ("llm", ["estimate", "{w}/composed.yaml"], "model.llm", UNWEIGHED),
    "export": ("llm", ["export", "{w}/runs/tiny", "{w}/out"], "model.llm", tuple(FAULTS)),
    "eval": (
        "llm", ["eval", "{w}/runs/tiny", "--data", "{w}/data.json", "--image-dir", "{w}/images"], "model.llm",
        ("NaN", "an adapter"),
    ),
    "check": ("llm", ["check", "{w}/composed.yaml", "--model", "{w}/llm", "--out", "{w}/page.html"], "--model",
              ("weights elsewhere", "NaN", *UNWEIGHED)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "fault"), [(command, fault) for command, (*_, faults) in COMMANDS.items() for fault in faults]
)
def test_it_is_refused(place: Path, command: str, fault: str) -> None:
    kind, words, key, _ = COMMANDS[command]
    change, told = FAULTS[fault]
    change(place / kind)
    out, err = io.StringIO(), io.StringIO()
    with pytest.raises(SystemExit) as ended, redirect_stdout(out), redirect_stderr(err):
        main([word.format(w=place) for word in words])
    said = " ".join(err.getvalue().split())
    assert ended.value.code == 2, said
    message = said.split("error: ", 1)[1]
    require_good(message, [str(place / kind)])
    assert message.startswith(f"{key}: ") and re.search(told, message), message
    assert not (place / "out").exists()


def test_samples_that_are_longer_than_the_llm_reads(place: Path) -> None:
    """As ``eval`` and ``chat`` refuse a question that is."""
    config = json.loads((place / "llm" / "config.json").read_text())
    recipe = load_recipe(str(place / "composed.yaml"))

    def longest(positions: int) -> int:
        (place / "llm" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
        _, data = preflight(recipe, CPU, lambda text: None, shown=False)
        return int(data.report.lengths.max())

    most = longest(1000)
    assert longest(most) == most > 9
    for fewer in (most - 1, 8):
        told = rf"data.train: the longest sample has {most} .* reads {fewer} at most .* data.max_length={fewer}"
        with pytest.raises(UserError, match=told):
            longest(fewer)


# Each changes an answer, its form, or whether there is one.
HOSTILE: list[dict[str, Any]] = [
    {"max_time": 1e-9, "min_new_tokens": 7, "forced_bos_token_id": 5, "repetition_penalty": 9.0},
    {"guidance_scale": 3.0, "bad_words_ids": [[4], [5]], "sequence_bias": [[[5], 50.0]],
     "watermarking_config": {"bias": 50.0}},
    {"return_dict_in_generate": True, "stop_strings": ["red"], "prompt_lookup_num_tokens": 3},
    {"cache_implementation": "static", "num_beams": 3, "num_return_sequences": 2},
]  # fmt: skip


def test_a_generation_config_changes_no_answer(place: Path) -> None:
    """In evaluations and in chats; of it only the end tokens are taken."""
    recipe = load_recipe(str(place / "composed.yaml"))
    records = load_records(recipe.data.train, root=place)

    def said() -> tuple[list[str], str]:
        torch.manual_seed(0)  # of the projector, which no checkpoint has
        loaded = load_base(recipe, CPU)
        chat = chat_format(recipe, loaded.frontend)
        texts = answer(loaded, chat, [records[0], records[1]], image_fit="pad", batch_size=2, max_new_tokens=6)
        speaker = FolderSpeaker(str(place / "llava"), CPU, "float32")
        asked = [Message("user", "what colour is it ?", (picture(place / "images" / "0.png"),))]
        return texts, "".join(speaker.reply(asked, Manner(max_new_tokens=6)))

    before = said()
    for hostile in HOSTILE:
        for kind in ("llm", "llava"):
            (place / kind / GENERATION).write_text(json.dumps({"eos_token_id": 2} | hostile))
        assert said() == before, hostile
