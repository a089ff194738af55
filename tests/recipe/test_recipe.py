"""Recipes: strict reading, all problems at once with their places, overrides, round trip, the shipped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basic_lite.errors import UserError
from basic_lite.recipe import (
    check_recipe,
    describe_keys,
    dump_recipe,
    find_recipe,
    load_recipe,
    shipped_recipe,
    shipped_recipes,
)
from basic_lite.recipe.schema import Recipe
from basic_lite.recipe.yaml import read_document, read_override, read_scalar, write_yaml

GOOD = """\
name: run
stage: 2
model:
  vision: v
  llm: l
lora:
  enabled: true
data:
  train:
    path: data.json
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    """The lines of the report, without the one that counts them."""
    with pytest.raises(UserError) as caught:
        load_recipe(write(folder, text), overrides)
    head, *lines = str(caught.value).split("\n")
    count = int(re.search(r"(\d+) problems?:$", head).group(1)) if "problems" in head else 1  # type: ignore[union-attr]
    assert count == len(lines), head
    return [line.strip().removeprefix(str(folder / "recipe.yaml")) for line in lines]


def problem(folder: Path, text: str, *overrides: str) -> str:
    (line,) = problems(folder, text, *overrides)
    return line


# --- reading ---------------------------------------------------------------------------------------------


def test_good_recipe_has_its_values_and_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert (recipe.name, recipe.stage, recipe.model.llm) == ("run", 2, "l")
    assert recipe.supervision.layers == 0.5
    assert recipe.training.betas == (0.9, 0.999)


@pytest.mark.parametrize("text", ["2e-5", "2E-5", "2.0e-05", ".00002", "+2e-5", "0.00002"])
def test_every_spelling_of_a_number_is_a_number(tmp_path: Path, text: str) -> None:
    recipe = load_recipe(write(tmp_path, GOOD + f"training:\n  learning_rate: {text}\n"))
    assert recipe.training.learning_rate == 2e-5
    assert load_recipe(write(tmp_path, GOOD), [f"training.learning_rate={text}"]) == recipe


def test_yaml_11_words_stay_text_and_integers_become_floats(tmp_path: Path) -> None:
    for directive in ("", "%YAML 1.1\n---\n"):
        text = directive + GOOD + "supervision:\n  direction: off\ntraining:\n  learning_rate: 1\n"
        recipe = load_recipe(write(tmp_path, text))
        assert recipe.supervision.direction == "off"
        assert recipe.training.learning_rate == 1.0
        assert isinstance(recipe.training.learning_rate, float)


def test_layers_tells_a_count_from_a_fraction(tmp_path: Path) -> None:
    for text, value in (("1", 1), ("1.0", 1.0), ("16", 16), ("0.25", 0.25)):
        layers = load_recipe(write(tmp_path, GOOD), [f"supervision.layers={text}"]).supervision.layers
        assert layers == value
        assert type(layers) is type(value)


def test_empty_section_means_its_defaults_and_aliases_work(tmp_path: Path) -> None:
    text = GOOD + "supervision:\n#  layers: 3\n"
    assert load_recipe(write(tmp_path, text)).supervision.layers == 0.5
    shared = GOOD.replace("path: data.json", "path: &d data.json") + "  eval:\n    path: *d\n"
    assert load_recipe(write(tmp_path, shared)).data.eval.path == "data.json"  # type: ignore[union-attr]


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_recipe(path) == load_recipe(write(tmp_path, GOOD))


# --- what is wrong, and where ----------------------------------------------------------------------------


def test_everything_wrong_is_reported_at_once(tmp_path: Path) -> None:
    text = """\
name: 7
stage: 2
model:
  visoin: x
  llm: y
  attention: sdpaa
training:
  learning_rate: '3e-4 '
  micro_batch: 3
  global_batch: 128
  micro_batch: 4
  betas: [0.9, 1.0]
  trackers: [tensorbord, wandb]
  device: cpu
lr: 3
lora:
  enabled: true
  targets: [q_proj, lm_head]
data:
  train:
    - path: a
      hub: b
    - {split: x}
supervision:
  layers: 1.5
kernels: triton
"""
    found = problems(tmp_path, text, "lora.rnk=3", "training.eval_every=10", "foo", "lora=[", "name.x=3")
    expected = [
        ":1:7: name: expected text, found the number 7",
        ":4:3: model.visoin: there is no such key; did you mean `model.vision`?",
        ":6:14: model.attention: expected one of sdpa, eager, flash_attention_2, found the text 'sdpaa'",
        ":8:18: training.learning_rate: expected a number of at least 0, found the text '3e-4 '",
        ":9:16: training.micro_batch: micro_batch 3 does not divide global_batch 128",
        ":11:3: training.micro_batch: the same key a second time (first at line 9)",
        ":12:10: training.betas: each beta is at least 0 and below 1",
        ":13:14: training.trackers.0: expected one of tensorboard",
        ":15:1: lr: there is no such key; did you mean `training.learning_rate`?",
        ":18:21: lora.targets.1: 'lm_head' is a LoRA on a vocabulary table",
        ":21:13: data.train.0.path: one source can't be data.train.0.path and data.train.0.hub",
        ":23:7: data.train.1: the source names no data",
        ":25:11: supervision.layers: a fraction of the layers lies above 0 and is at most 1",
        ":26:10: kernels: triton runs on a GPU only",
        "command line: lora.rnk: there is no such key; did you mean `lora.rank`?",
        "command line: training.eval_every: there is nothing to evaluate on",
        "command line: expected key.path=value, found 'foo'",
        "command line: lora: '[' is not valid YAML",
        "command line: name.x: `name` holds the number 7, not keys",
    ]
    for start in expected:
        assert any(line.startswith(start) for line in found), (start, found)
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("stage", "3", "expected one of 1, 2, found the number 3"),
        ("stage", "true", "expected one of 1, 2, found true"),
        ("stage", "2.0", "expected one of 1, 2, found the number 2.0"),
        ("stage", "'2'", "found the text '2'"),
        ("seed", "-1", "expected an integer of at least 0 and at most 4294967295, found the number -1"),
        ("seed", "1.5", "expected an integer"),
        ("seed", "false", "found false"),
        ("name", "''", "found an empty text"),
        ("name", "null", "expected text, found nothing"),
        ("training.global_batch", "128.0", "found the number 128.0; write 128"),
        ("training.global_batch", "1_000", "found the text '1_000'; write 1000"),
        ("training.epochs", ".inf", "must be finite"),
        ("training.epochs", ".nan", "must be finite"),
        (
            "training.gradient_checkpointing",
            "yes",
            "expected true or false, found the text 'yes'; write true",
        ),
        ("training.gradient_checkpointing", "1", "expected true or false, found the number 1"),
        ("training.betas", "[0.9]", "expected a list of 2 numbers"),
        ("training.betas", "[0.9, x]", "expected a list of 2 numbers"),
        ("training.scheduler", "cosin", "did you mean cosine?"),
        ("training.scheduler", "[cosine]", "found a list"),
        ("lora.dropout", "1", "expected a number of at least 0 and less than 1, found the number 1"),
        ("lora.targets", "q_proj", "expected all-linear or a list, each entry text, found the text 'q_proj'"),
        ("model.llm", "{a: 1}", "expected text, found keys (a)"),
        ("model", "openai/clip", "expected keys (base, vision, llm"),
        ("data.train", "data.json", "write {path: data.json}"),
        ("data.eval", "5", "expected keys (path"),
        ("supervision.token_weights", "uniforn", "did you mean uniform?"),
    ],
)
def test_wrong_types_are_said_in_plain_words(tmp_path: Path, key: str, value: str, says: str) -> None:
    line = problem(tmp_path, GOOD, f"{key}={value}")
    assert line.startswith(f"command line: {key}: ")
    assert says in line


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("training.learning_rat", "training.learning_rate"),
        ("learning_rate", "training.learning_rate"),
        ("lora.micro_batch", "training.micro_batch"),
        ("lora.r", "lora.rank"),
        ("supervision.lambda_dsa", "supervision.lambda_das"),
        ("data.train.imgdir", "data.train.image_dir"),
        ("quantisation", "quantization"),
        ("per_device_train_batch_size", "training.micro_batch"),
        ("zzz", ""),
    ],
)
def test_unknown_keys_come_with_the_nearest_key(tmp_path: Path, key: str, nearest: str) -> None:
    line = problem(tmp_path, GOOD, f"{key}=1")
    assert f"command line: {key}: there is no such key" in line
    named = re.search(r"`(.+)`", line)
    assert named is not None
    assert named.group(1) == nearest or not nearest


def test_dotted_key_in_a_file_is_told_to_nest(tmp_path: Path) -> None:
    line = problem(tmp_path, GOOD + "training.epochs: 2\n")
    assert line.startswith(":11:1: training.epochs")
    assert "write `epochs` below `training:`" in line


def test_missing_keys(tmp_path: Path) -> None:
    found = problems(tmp_path, "model:\n  base: b\ndata: {}\n")
    assert [line.split(": ")[1] for line in found] == ["name", "stage", "data.train"]
    assert found[2].startswith(":3:1: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1\nb: 2\n", ":2:2: not valid YAML"),
        ("a: 1\n\tb: 2\n", ":2:1: not valid YAML"),
        ("a: 'x\n", "not valid YAML"),
        ("a: 1\nb: x\x07\n", ":2:5: not valid YAML"),
        ("", ":1:1: the file holds no keys"),
        ("# only a comment\n", ":1:1: the file holds no keys"),
        ("- x\n", ":1:1: expected keys with values"),
        ("just words\n", "found the text 'just words'"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("name: *nowhere\n", "undefined alias"),
        ("[" * 800, "nested too deeply"),
    ],
)
def test_what_is_no_recipe_at_all(tmp_path: Path, text: str, says: str) -> None:
    found = problems(tmp_path, text, "nonsense")
    assert says in found[0]
    assert "expected key.path=value" in found[-1]


def test_tags_and_cycles_are_refused_with_their_place(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD + "supervision: !!python/object:os.system rm\n")
    assert [line.split(": ")[1] for line in found] == ["supervision"]
    found = problems(tmp_path, "model: &a {base: *a}\n")
    assert any("contains itself" in line for line in found)
    assert "no YAML tags" in problem(tmp_path, GOOD + "kernels: !secret x\n")


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(UserError, match=r"doesn't exist; the nearest is .*recipe\.yaml"):
        load_recipe(tmp_path / "recip.yaml")
    with pytest.raises(UserError, match=r"nearest is recipes.7b_qlora\.yaml"):
        load_recipe("recipes/7b_qlor.yaml")
    with pytest.raises(UserError, match="is a folder"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nname: \xff\n")
    with pytest.raises(UserError, match=r"UTF-8 \(line 2\)"):
        load_recipe(tmp_path / "latin.yaml")


# --- overrides -------------------------------------------------------------------------------------------


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    recipe = load_recipe(
        path,
        [
            "training.max_steps=3",
            "training.max_steps=4",
            "supervision.stages=[1]",
            "lora.targets=[q_proj, v_proj]",
            "data.eval={path: e.json, limit: 5}",
            "data.eval.limit=6",
            r"data.train.path=C:\data\x: 1 #.json",
            "model.projector='12'",
            "model.projector=",
            "output=*",
        ],
    )
    assert recipe.training.max_steps == 4
    assert recipe.supervision.stages == [1]
    assert recipe.lora.targets == ["q_proj", "v_proj"]
    assert recipe.data.eval.limit == 6  # type: ignore[union-attr]
    assert recipe.data.train.path == r"C:\data\x: 1 #.json"  # type: ignore[union-attr]
    assert recipe.model.projector is None
    assert recipe.output == "*"


def test_override_mends_a_wrong_value_and_reaches_into_lists(tmp_path: Path) -> None:
    text = GOOD.replace("    path: data.json\n", "    - path: a\n    - path: b\n") + "seed: x\n"
    recipe = load_recipe(write(tmp_path, text), ["seed=3", "data.train.1.path=c"])
    assert recipe.seed == 3
    assert [source.path for source in recipe.data.train] == ["a", "c"]  # type: ignore[union-attr]
    found = problems(tmp_path, text, "seed=3", "data.train.2.path=c", "data.train.path=c")
    assert all("`data.train` is a list here" in line for line in found)
    assert len(found) == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ("off", "off"),
        ("'3'", "3"),
        ("[1, a]", [1, "a"]),
    ],
)
def test_override_values(text: str, value: Any) -> None:
    read = read_override(text)
    assert read == value
    assert type(read) is type(value)


# --- impossible combinations -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (["model.base=b"], "model.base", "remove model.base or model.vision and model.llm"),
        (["model.llm=null"], "model.vision", "add model.llm"),
        (["model.vision=null"], "model.llm", "add model.vision"),
        (["model.vision=null", "model.llm=null"], "model", "give model.vision and model.llm"),
        (["data.train.hub=h"], "data.train.path", "data.train.path and data.train.hub at once"),
        (["data.train.path="], "data.train", "give one of data.train.path"),
        (["data.train=[]"], "data.train", "the list of sources is empty"),
        (["data.train.config=c"], "data.train.config", "belongs to data.train.hub"),
        (["data.train={hub: h, columns: {imag: x}}"], "data.train.columns.imag", "the nearest is 'image'"),
        (["stage=1"], "lora.enabled", "stage: 2"),
        (["lora.targets=[q_proj, model.embed_tokens]"], "lora.targets.1", "vocabulary table"),
        (["lora.targets=[lm_head]"], "lora.targets.0", "vocabulary table"),
        (["lora.targets=[]"], "lora.targets", "all-linear"),
        (["lora.targets=[multi_modal_projector.linear_1]"], "lora.targets.0", "not part of the LLM"),
        (["supervision.layers=0"], "supervision.layers", "at least 1"),
        (["supervision.layers=-3"], "supervision.layers", "at least 1"),
        (["supervision.layers=1.5"], "supervision.layers", "at most 1"),
        (["supervision.layers=16.0"], "supervision.layers", "write 16, without a dot"),
        (["supervision.layers=0.0"], "supervision.layers", "above 0"),
        (["supervision.stages=[]"], "supervision.stages", "supervision.enabled: false"),
        (["supervision.token_weights=0"], "supervision.token_weights", "number above 0"),
        (
            ["training.micro_batch=48"],
            "training.micro_batch",
            "micro_batch: 32, or training.global_batch: 144",
        ),
        (["training.betas=[0.9, 1]"], "training.betas", "below 1"),
        (["training.eval_every=5"], "training.eval_every", "add data.eval"),
        (
            ["training.projector_learning_rate=0", "training.learning_rate=0"],
            "training.learning_rate",
            "nothing",
        ),
        (
            ["training.projector_learning_rate=0", "lora.enabled=false"],
            "training.projector_learning_rate",
            "LoRA",
        ),
        (["model.attention=flash_attention_2", "training.device=cpu"], "model.attention", "sdpa"),
        (["kernels=triton", "training.device=cpu"], "kernels", "kernels: reference"),
        (["model.image_token=< image>"], "model.image_token", "white space"),
        (["name=a/b"], "name", "can't be the name of a folder"),
        (["name=.."], "name", "can't be the name of a folder"),
        (["model.projector=runs/../runs/run"], "model.projector", "this run itself writes"),
        (
            ["model.attention=flash_attention_2", "model.dtype=float32", "training.autocast=off"],
            "model.attention",
            "16 bit",
        ),
    ],
)
def test_impossible_combinations(tmp_path: Path, overrides: list[str], key: str, says: str) -> None:
    line = problem(tmp_path, GOOD, *overrides)
    assert f"command line: {key}: " in line or f": {key}: " in line
    assert says in line


@pytest.mark.parametrize(
    "overrides",
    [
        ["lora.enabled=false"],
        ["supervision.lambda_das=0", "supervision.lambda_sds=0"],
        ["supervision.direction=off", "supervision.lambda_sds=0"],
        ["supervision.enabled=false", "supervision.stages=[]"],
        ["training.optimizer=paged_adamw_8bit", "training.device=cpu"],
        ["data.template=plain"],
        ["training.projector_learning_rate=0"],
        ["model={base: b, projector: p}"],
        ["lora.enabled=false", "lora.targets=[lm_head]"],
        ["data.train=[{hub: h, config: c, columns: {image: picture}}, {path: p}]"],
    ],
)
def test_what_is_unusual_but_possible_is_allowed(tmp_path: Path, overrides: list[str]) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), overrides)
    check_recipe(recipe)
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


def test_recipe_built_in_python_is_checked_too(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    recipe.training.micro_batch = 3
    recipe.supervision.layers = 0
    with pytest.raises(UserError) as caught:
        check_recipe(recipe)
    assert "training.micro_batch" in str(caught.value)
    assert "supervision.layers" in str(caught.value)


# --- writing and describing ------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(st.dictionaries(st.text(min_size=1), scalars | st.lists(scalars) | st.dictionaries(st.text(), scalars)))
def test_written_yaml_reads_back_the_same(values: dict[str, Any]) -> None:
    if not values:
        return
    document = read_document(write_yaml(values), "x")
    assert document.problems == []
    assert repr(document.values) == repr(values)


@given(st.text(alphabet="0123456789+-.eExX_oainfNTr~: ", max_size=6))
def test_texts_that_look_like_numbers_stay_texts(text: str) -> None:
    assert read_document(write_yaml({"a": text}), "x").values == {"a": text}


@given(st.text())
def test_any_unquoted_scalar_reads_without_an_exception(text: str) -> None:
    read_scalar(text)


def test_any_text_gives_a_report_never_a_traceback(tmp_path: Path) -> None:
    lines = GOOD.splitlines()
    for number in range(len(lines)):
        for replacement in ("", ": :", "  - x", "? y", "'", "a: &a", "\x00", "stage: {a: [b"):
            text = "\n".join([*lines[:number], replacement, *lines[number + 1 :]])
            with pytest.raises(UserError, match="problem"):
                load_recipe(write(tmp_path, text), ["model.vision.x=1"])


def test_describe_keys_covers_every_key_with_documentation() -> None:
    rows = {row.name: row for row in describe_keys()}
    assert {"name", "stage", "model.llm", "data.train.path", "training.betas", "lora.targets"} <= set(rows)
    assert all(row.doc and row.type and row.default for row in rows.values())
    assert rows["training.betas"].default == "[0.9, 0.999]"
    assert rows["supervision.layers"].type == "an integer or a number"
    assert rows["data.train"].default == "required"
    assert {row.name for row in describe_keys("lora")} == {
        f"lora.{key}"
        for key in Recipe.model_fields["lora"].annotation.model_fields  # type: ignore[union-attr]
    }


# --- the shipped recipes ---------------------------------------------------------------------------------

SHIPPED = {path.stem: path for path in shipped_recipes()}

# METHOD: LLaVA-1.5's two stages, learning rates of the QLoRA edition.
SHARED = {
    "model.vision": "openai/clip-vit-large-patch14-336",
    "model.vision_feature_layer": -2,
    "model.vision_feature_select": "default",
    "quantization.mode": "nf4",
    "quantization.double": True,
    "data.max_length": 2048,
    "training.epochs": 1.0,
    "training.max_steps": None,
    "training.scheduler": "cosine",
    "training.warmup_ratio": 0.03,
    "training.weight_decay": 0.0,
    "supervision.enabled": True,
    "supervision.stages": [1, 2],
    "supervision.layers": 0.5,
    "supervision.layer_weights": "quadratic",
    "supervision.token_weights": "attention",
    "supervision.text_queries": "all",
    "supervision.detach": True,
    "supervision.direction": "cosine",
    "supervision.vocabulary": "input_embeddings",
    "supervision.temperature": 1.0,
    "supervision.lambda_das": 1.0,
    "supervision.lambda_sds": 0.01,
    "supervision.every_n_steps": 1,
}
STAGE_1 = SHARED | {
    "stage": 1,
    "model.projector": None,
    "lora.enabled": False,
    "training.projector_learning_rate": 1e-3,
    "training.global_batch": 256,
    "data.template": "plain",
    "data.image_fit": "square",
}
STAGE_2 = SHARED | {
    "stage": 2,
    "lora.enabled": True,
    "lora.rank": 128,
    "lora.alpha": 256.0,
    "lora.dropout": 0.05,
    "lora.targets": "all-linear",
    "training.learning_rate": 2e-4,
    "training.projector_learning_rate": 2e-5,
    "training.global_batch": 128,
    "data.template": "v1",
    "data.image_fit": "pad",
}
HYPERPARAMETERS = {
    "7b_pretrain": STAGE_1 | {"model.llm": "lmsys/vicuna-7b-v1.5"},
    "7b_qlora": STAGE_2 | {"model.llm": "lmsys/vicuna-7b-v1.5", "model.projector": "runs/7b_pretrain"},
    # Rank 64 at the method's alpha / rank: what a 16 GB card holds.
    "13b_qlora": STAGE_2
    | {"model.llm": "lmsys/vicuna-13b-v1.5", "model.projector": "runs/13b_pretrain"}
    | {"lora.rank": 64, "lora.alpha": 128.0},
}


def value_of(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def test_the_recipes_that_must_be_there_are() -> None:
    assert {*HYPERPARAMETERS, "demo_stage1", "demo_stage2"} <= set(SHIPPED)
    assert shipped_recipe("7b_qlora") == shipped_recipe("7b_qlora.yaml") == SHIPPED["7b_qlora"]
    assert find_recipe("7b_qlora") == find_recipe("recipes/7b_qlora.yaml") == SHIPPED["7b_qlora"]
    with pytest.raises(UserError, match=r"there are: .*7b_pretrain"):
        shipped_recipe("70b")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_is_valid_and_opens_with_its_commands(name: str, tmp_path: Path) -> None:
    path = SHIPPED[name]
    recipe = load_recipe(path)
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe
    header = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))
    assert header is not None
    assert f"basic-lite train recipes/{name}.yaml" in header.group(0)
    if name.startswith("demo"):
        assert "#   basic-lite demo\n" in header.group(0)
    else:
        assert recipe.name == name
        for weights in (recipe.model.vision, recipe.model.llm):
            assert f"hf download {weights}" in header.group(0)
        assert f"basic-lite train recipes/{name}.yaml --dry-run" in header.group(0)


@pytest.mark.parametrize("name", SHIPPED)
def test_commands_in_a_header_are_ones_this_program_takes(name: str) -> None:
    for command in re.findall(r"^#   basic-lite train (.+)$", SHIPPED[name].read_text(encoding="utf-8"), re.M):
        recipe, *rest = [word for word in command.split() if not word.startswith("--")]
        loaded = load_recipe(recipe, rest)
        if name == "13b_qlora" and loaded.stage == 1:
            assert load_recipe(SHIPPED[name]).model.projector == f"{loaded.output}/{loaded.name}"
            assert loaded.model.llm == load_recipe(SHIPPED[name]).model.llm


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_hyperparameters_are_the_methods(name: str) -> None:
    recipe = load_recipe(SHIPPED[name])
    found = {key: value_of(recipe, key) for key in HYPERPARAMETERS[name]}
    assert found == HYPERPARAMETERS[name]
    assert "adamw" in recipe.training.optimizer


def test_demo_recipes_fit_together() -> None:
    first, second = load_recipe("demo_stage1"), load_recipe("demo_stage2")
    assert (first.stage, second.stage) == (1, 2)
    assert second.model.projector == f"{first.output}/{first.name}"
    assert first.quantization.mode == second.quantization.mode == "nf4"
    assert (first.model.vision, first.model.llm) == (second.model.vision, second.model.llm)
