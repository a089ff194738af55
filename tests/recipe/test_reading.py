"""Reading a recipe: what values mean, and everything wrong at once, each with its place."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from basic_lite.errors import UserError
from basic_lite.recipe import load_recipe
from tests.support.recipes import GOOD, problem, problems, write_recipe


def test_good_recipe_has_its_values_and_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, GOOD))
    assert (recipe.name, recipe.stage, recipe.model.llm) == ("run", 2, "l")
    assert recipe.supervision.layers == 0.5
    assert recipe.training.betas == (0.9, 0.999)


@pytest.mark.parametrize("text", ["2e-5", "2E-5", "2.0e-05", ".00002", "+2e-5", "0.00002"])
def test_every_spelling_of_a_number_is_a_number(tmp_path: Path, text: str) -> None:
    recipe = load_recipe(write_recipe(tmp_path, GOOD + f"training:\n  learning_rate: {text}\n"))
    assert recipe.training.learning_rate == 2e-5
    assert load_recipe(write_recipe(tmp_path, GOOD), [f"training.learning_rate={text}"]) == recipe


def test_yaml_11_words_stay_text_and_integers_become_floats(tmp_path: Path) -> None:
    for directive in ("", "%YAML 1.1\n---\n"):
        text = directive + GOOD + "supervision:\n  direction: off\ntraining:\n  learning_rate: 1\n"
        recipe = load_recipe(write_recipe(tmp_path, text))
        assert recipe.supervision.direction == "off"
        assert recipe.training.learning_rate == 1.0
        assert isinstance(recipe.training.learning_rate, float)


def test_layers_tells_a_count_from_a_fraction(tmp_path: Path) -> None:
    for text, value in (("1", 1), ("1.0", 1.0), ("16", 16), ("0.25", 0.25)):
        layers = load_recipe(write_recipe(tmp_path, GOOD), [f"supervision.layers={text}"]).supervision.layers
        assert layers == value
        assert type(layers) is type(value)


def test_empty_section_means_its_defaults_and_aliases_work(tmp_path: Path) -> None:
    text = GOOD + "supervision:\n#  layers: 3\n"
    assert load_recipe(write_recipe(tmp_path, text)).supervision.layers == 0.5
    shared = GOOD.replace("path: data.json", "path: &d data.json") + "  eval:\n    path: *d\n"
    assert load_recipe(write_recipe(tmp_path, shared)).data.eval.path == "data.json"  # type: ignore[union-attr]


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_recipe(path) == load_recipe(write_recipe(tmp_path, GOOD))


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
    small = "name: 7\nstage: 2\nmodel: {vision: v, llm: l}\nlora: {enabled: true}\ndata: {train: {path: a}}\n"
    wrong = ["lora.rnk=3", "training.eval_every=10", "foo", "lora=[", "name.x=3"]
    found = [*problems(tmp_path, text), *problems(tmp_path, small, *wrong)]
    expected = [
        ":1:7: name: expected text, found the number 7",
        ":4:3: model.visoin: there is no such key; did you mean `model.vision`?",
        ":6:14: model.attention: expected one of sdpa, eager, flash_attention_2, found the text 'sdpaa'",
        ":8:18: training.learning_rate: expected a number of at least 0 and at most 1,000, found the text '3e-4 '",
        ":9:16: training.micro_batch: micro_batch 3 does not divide global_batch 128",
        ":11:3: training.micro_batch: the same key a second time (first at line 9)",
        ":12:10: training.betas: each beta is at least 0 and below 1",
        ":13:14: training.trackers.0: expected one of tensorboard",
        ":15:1: lr: there is no such key; did you mean `training.learning_rate`?",
        ":18:21: lora.targets.1: 'lm_head' is a vocabulary table",
        ":21:13: data.train.0.path: one source can't be data.train.0.path and data.train.0.hub",
        ":23:7: data.train.1: the source names no data",
        ":25:11: supervision.layers: give a fraction of the layers above 0 and at most 1",
        ":26:10: kernels: triton needs a GPU",
        ":1:7: name: expected text, found the number 7",
        "command line: lora.rnk: there is no such key; did you mean `lora.rank`?",
        "command line: training.eval_every: there is nothing to evaluate on",
        "command line: expected key.path=value, found 'foo'",
        "command line: lora: '[' is not valid YAML",
        "command line: name.x: `name` holds the number 7, not keys",
    ]
    for start in expected:
        assert any(line.startswith(start) for line in found), (start, found)
    assert len(found) == len(expected)
    # More than a screen of them is cut, and the rest counted.
    with pytest.raises(UserError, match=r"has 19 problems:\n(.|\n)*… \(\d+ lines left out\)\n") as caught:
        load_recipe(write_recipe(tmp_path, text), wrong)
    assert len(str(caught.value)) <= 2000


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("stage", "3", "expected one of 1, 2, found the number 3"),
        ("stage", "true", "expected one of 1, 2, found true"),
        ("stage", "2.0", "expected one of 1, 2, found the number 2.0"),
        ("stage", "'2'", "found the text '2'"),
        ("seed", "-1", "expected an integer of at least 0 and at most 4,294,967,295, found the number -1"),
        ("seed", "1.5", "expected an integer"),
        ("seed", "false", "found false"),
        ("name", "''", "found an empty text"),
        ("name", "null", "expected text, found nothing"),
        ("training.global_batch", "128.0", "found the number 128.0; write 128"),
        ("training.global_batch", "1_000", "found the text '1_000'; write 1000"),
        ("training.epochs", ".inf", "must be finite"),
        ("training.epochs", ".nan", "must be finite"),
        ("quantization.double", "yes", "expected true or false, found the text 'yes'; write true"),
        ("quantization.double", "1", "expected true or false, found the number 1"),
        (
            "training.gradient_checkpointing",
            "yes",
            "expected true or false or an integer of at least 0 and at most 10,000",
        ),
        ("training.gradient_checkpointing", "-1", "at least 0 and at most 10,000, found the number -1"),
        ("training.gradient_checkpointing", "8.0", "found the number 8.0; write 8"),
        ("training.betas", "[0.9]", "expected a list of 2 numbers"),
        ("training.betas", "[0.9, x]", "expected a list of 2 numbers"),
        ("training.scheduler", "cosin", "did you mean cosine?"),
        ("training.scheduler", "[cosine]", "found a list"),
        ("training.epochs", "3,5", "found the text '3,5'; write 3.5, with a point"),
        ("training.learning_rate", "1,5e-4", "; write 1.5e-4, with a point"),
        ("training.max_steps", "3,5", ", found the text '3,5'; write a number alone, such as 3"),
        ("training.max_steps", "1,000", "; write a number alone, such as 1000"),
        ("training.max_steps", "2k", "; write a number alone, such as 2000"),
        ("training.keep", "2GB", ", found the text '2GB'; write a number alone, such as 2"),
        ("training.keep", "2.5", ", found the number 2.5; write 2"),
        ("data.held_out", "5%", ", found the text '5%'; write a number alone, such as 0.05"),
        pytest.param("training.epochs", "9" * 400 + "k", "found the text '999", id="400 digits"),
        pytest.param("training.max_steps", "9" * 400 + "k", "found the text '999", id="400 digits of a whole number"),
        ("data.held_out", "0.7%", "; write a number alone, such as 0.007"),
        ("training.learning_rate", "2e-4x", ", found the text '2e-4x'; write a number alone, such as 0.0002"),
        ("lora.dropout", "1", "expected a number of at least 0 and less than 1, found the number 1"),
        ("lora.targets", "q_proj", "expected all-linear or a list, each entry text, found the text 'q_proj'"),
        ("model.llm", "{a: 1}", "expected text, found keys (a)"),
        ("model", "openai/clip", "expected keys (base, vision, llm"),
        ("data.train", "data.json", "; write 'data.train={path: data.json}'"),
        ("data.eval", "5", "expected keys (path"),
        ("supervision.token_weights", "uniforn", "did you mean uniform?"),
        ("data.held_out", "0", "found the number 0; to turn it off, write null"),
        ("training.eval_every", "off", "to turn it off, write null"),
        ("training.max_steps", "false", "to turn it off, write null"),
        ("supervision.preset", "off", "found the text 'off'; to turn it off, set supervision.enabled=false"),
        ("supervision.preset", "null", "found nothing; to turn it off, set supervision.enabled=false"),
        ("supervision", "false", "to turn it off, set supervision.enabled=false"),
        ("supervision", "null", "found nothing; to turn it off, set supervision.enabled=false"),
        ("lora", "~", "found nothing; to turn it off, set lora.enabled=false"),
        ("quantization", "null", "found nothing; to turn it off, set quantization.mode=none"),
        ("quantization", "off", "found the text 'off'; to turn it off, set quantization.mode=none"),
        ("training", "null", "found nothing; leave it out for its defaults"),
        ("lora", "off", "to turn it off, set lora.enabled=false"),
        ("lora.rank", "0", "to turn it off, set lora.enabled=false"),
        ("quantization.mode", "off", "found the text 'off'; write none"),
    ],
)
def test_wrong_types_are_said_in_plain_words(tmp_path: Path, key: str, value: str, says: str) -> None:
    line = problem(tmp_path, GOOD, f"{key}={value}")
    assert line.startswith(f"command line: {key}: ")
    assert says in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("training.keep", "0.5GB"), ("training.keep", "0.5"), ("training.micro_batch", "0.5")],
        *[("data.held_out", "80%"), ("data.held_out", "'0.8'"), ("training.max_steps", "5%")],
    ],
)
def test_no_number_is_told_that_the_key_refuses(tmp_path: Path, key: str, value: str) -> None:
    assert not re.search(r"; write .*\d", problem(tmp_path, GOOD, f"{key}={value}"))


@pytest.mark.parametrize("written", ["null", "~"])
def test_a_null_in_place_of_a_section_may_mean_off_and_is_refused(tmp_path: Path, written: str) -> None:
    line = problem(tmp_path, GOOD + f"supervision: {written}\n")
    assert line.endswith("found nothing; to turn it off, set supervision.enabled=false")


@pytest.mark.parametrize("command_line", [True, False])
def test_the_mend_of_a_folder_as_source_works_as_typed(tmp_path: Path, command_line: bool) -> None:
    (tmp_path / "my photos").mkdir()
    folder = str(tmp_path / "my photos")

    def in_file(source: str) -> str:
        return GOOD.replace("\n    path: data.json", f" {source}")

    line = problem(tmp_path, GOOD, f"data.train={folder}") if command_line else problem(tmp_path, in_file(folder))
    _, mend = line.split("; write ")
    if command_line:
        (word,) = shlex.split(mend)
        recipe = load_recipe(write_recipe(tmp_path, GOOD), [word])
    else:
        recipe = load_recipe(write_recipe(tmp_path, in_file(mend)))
    assert recipe.data.train.folder == folder


def test_another_kind_of_source_on_the_command_line_says_how_to_take_out_the_first(tmp_path: Path) -> None:
    assert "set the other to null" in problem(tmp_path, GOOD, "data.train.folder=photos")
    source = load_recipe(write_recipe(tmp_path, GOOD), ["data.train.folder=photos", "data.train.path=null"]).data.train
    assert (source.folder, source.path) == ("photos", None)


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
        ("training.steps", "training.max_steps"),
        ("training.projector_lr", "training.projector_learning_rate"),
        ("training.lr_projector", "training.projector_learning_rate"),  # the name of it in a run's log
        ("training.lr_lora", "training.learning_rate"),
        ("training.lr_scheduler_type", "training.scheduler"),
        ("training.num_steps", "training.max_steps"),
        ("version", None),
        ("lora.hooks", None),
    ],
)
def test_unknown_keys_come_with_a_key_that_is_near(tmp_path: Path, key: str, nearest: str | None) -> None:
    line = problem(tmp_path, GOOD, f"{key}=1")
    section = " lora" * key.startswith("lora.")
    hint = f"did you mean `{nearest}`?" if nearest else f"`basic-lite keys{section}` lists those that there are"
    assert f"command line: {key}: there is no such key; {hint}" in line


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
        ("a: 1\n\tb: 2\n", ":2:2: not valid YAML"),
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
    write_recipe(tmp_path, GOOD)
    with pytest.raises(UserError, match=r"doesn't exist; did you mean .*recipe\.yaml\?"):
        load_recipe(tmp_path / "recip.yaml")
    for name in ("recipes/7b_qlor.yaml", "7B_QLORA.yml"):
        with pytest.raises(UserError, match=r"did you mean recipes.7b_qlora\.yaml\?"):
            load_recipe(name)
    with pytest.raises(UserError, match=r"the recipe xyz doesn't exist; name a file, or a shipped recipe\nShipped"):
        load_recipe("xyz")
    with pytest.raises(UserError, match=r"^the recipe's name is empty; give a file, or a shipped recipe: 13b_qlora"):
        load_recipe("")
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nname: \xff\n")
    with pytest.raises(UserError, match=r"UTF-8 \(line 2\)"):
        load_recipe(tmp_path / "latin.yaml")


def test_a_runs_weights_in_a_recipes_place_are_told_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = Path("runs/a/final")
    bundle.mkdir(parents=True)
    (bundle / "recipe.json").write_text("{}")
    with pytest.raises(UserError, match=r"`basic-lite data FOLDER` writes a recipe"):
        load_recipe(bundle)  # nobody knows a recipe file
    (bundle.parent / "recipe.yaml").write_text(GOOD)
    mend = r"name the run's recipe, runs/a/recipe\.yaml, or .* `basic-lite train runs/a/recipe\.yaml "
    with pytest.raises(UserError, match=rf"{mend}model\.start=runs/a/final name=NEW`\n"):
        load_recipe(bundle)


def test_a_folder_in_a_recipes_place_is_told_what_was_meant(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    with pytest.raises(UserError, match=r"is a folder, not a recipe file; `basic-lite data FOLDER` writes a recipe"):
        load_recipe(photos)
    (photos / "inside.yaml").write_text(GOOD)
    with pytest.raises(UserError, match=r"name one that is in it: .*inside\.yaml\n"):
        load_recipe(photos)
    (tmp_path / "photos.yaml").write_text(GOOD)
    with pytest.raises(UserError, match=r"is a folder, not a recipe file; did you mean .*photos\.yaml\?"):
        load_recipe(photos)


@pytest.mark.parametrize(
    ("name", "meant"), [("a b.csv", '"PHOTOS/a b.csv"'), ("x.parquet", "PHOTOS/x.parquet"), ("p.JPG", "PHOTOS")]
)
def test_data_in_a_recipes_place_is_told(tmp_path: Path, name: str, meant: str) -> None:
    """A table was said to have no keys with values, a picture not to be saved as UTF-8."""
    (tmp_path / name).write_bytes(b"image,caption\n\xff")
    with pytest.raises(UserError) as told:
        load_recipe(tmp_path / name)
    again = f"`basic-lite data {meant.replace('PHOTOS', tmp_path.as_posix())}` writes one for it"
    assert str(told.value) == f"{tmp_path / name} is data, and a recipe belongs here; {again}"


def test_any_text_gives_a_report_never_a_traceback(tmp_path: Path) -> None:
    lines = GOOD.splitlines()
    for number in range(len(lines)):
        for replacement in ("", ": :", "  - x", "? y", "'", "a: &a", "\x00", "stage: {a: [b"):
            text = "\n".join([*lines[:number], replacement, *lines[number + 1 :]])
            with pytest.raises(UserError, match="problem"):
                load_recipe(write_recipe(tmp_path, text), ["model.vision.x=1"])
