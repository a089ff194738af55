"""What a name alone tells is told at once: before torch and transformers are imported, which takes seconds.

What a look into a file tells comes before torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from basic_lite.errors import UserError
from basic_lite.recipe import Recipe, load_recipe
from basic_lite.recipe.load import require_keys
from basic_lite.training.files import sha256
from basic_lite.training.inputs import look_at_inputs

RECIPE = "name: photos\nstage: 1\nmodel: {vision: v, llm: l}\ndata: {train: {path: a.json, image_dir: photos}}\n"
# Each command with what it says, given in a folder that holds a finished run `runs/photos` without predictions.
REFUSED = {
    "data fotos": "fotos: there is no such file or folder; did you mean photos?",
    "data my photos": "a name with spaces goes in quotes, as in",
    "check fotos": "fotos: there is no such file or folder; did you mean photos?",
    "data photos traning.max_steps=1": "traning: there is no such key; did you mean `training`?",
    "data photos training.max_steps=many": "training.max_steps: expected an integer",
    "data photos data.held_out = 0.3": "write it without: data.held_out=0.3",
    "data photos --recipe my_foto": "the recipe my_foto doesn't exist; did you mean recipes/my_photos.yaml?",
    "data photos --out photos.yaml": "photos.yaml is there already; add --overwrite",
    "check photos traning.max_steps=1": "traning: there is no such key; did you mean `training`?",
    "check photos --out nowhere/page.html": "--out: there is no folder nowhere; make it first",
    "estimate photos.yaml --gpu rtx4091": "--gpu is 'rtx4091', which isn't in the table of cards",
    "estimate photos.yaml 4090": "a card, or its memory, is named with --gpu",
    "run photos.yaml traning.max_steps=1": "traning: there is no such key; did you mean `training`?",
    "run photo.yaml": "the recipe photo.yaml doesn't exist; did you mean photos.yaml?",
    "compare runs/photos runs/other": "runs/photos has no predictions yet; ",
    "compare runs/photos runs/nowhere": "has no predictions yet; ",
    "compare runs/photo runs/other": "there is no run runs/photo; did you mean runs/photos?",
    "chat runs/photo": "there is no folder runs/photo; did you mean runs/photos?",
    "chat runs/photos missing.jpg why": "there is no picture missing.jpg; correct its path",
    "chat runs/done p00.png why": "there is no picture p00.png; did you mean photos/p00.png?",
    "chat runs/done p0.png why": "there is no picture p0.png; did you mean photos/p00.png?",
    "chat runs/photos p00.png why": "there is no picture p00.png; correct its path",  # its bundle can't be read
    "inspect runs/photo": "there is no folder runs/photo; did you mean runs/photos?",
    "inspect runs/photos p00.png": "there is no picture p00.png; correct its path",
    "inspect runs/photos --data b.json": "b.json: there is no such file or folder",
    "report runs/photo": "runs/photo is no run folder; did you mean runs/photos?",
    "eval runs/photo --held-out": "there is no folder runs/photo; did you mean runs/photos?",
    "eval runs/photos --data a.json": "a.json: there is no such file or folder",
    "export runs/photo out": "there is no folder runs/photo; did you mean runs/photos?",
    "export runs/photos runs/other": "runs/other exists already; choose another folder",
    "export runs/photos photos.yaml/out": "photos.yaml/out can't be written, since /",
    "text-probe runs/photo": "there is no folder runs/photo; did you mean runs/photos?",
    "train photos.yaml": "the run folder runs/photos already holds ",
    "train photos.yaml name=done": "the run folder runs/done already holds a finished run of this recipe; ",
    "train start.yaml name=more": "the run folder runs/more already holds a finished run of this recipe; ",
    "train start.yaml name=more stage=2": "the run folder runs/more already holds another run (its recipe differs: ",
    "train photos.yaml --resume name=nowhere": "--resume: there is no run in runs/nowhere to continue; correct name or "
    "output, give the command in the folder where the run was begun (this is /",
    "train photos.yaml --resume name=nowhere output=/gone": "--resume: there is no run in /gone/nowhere to continue; "
    "correct name or output, or leave --resume out",
    "train photos.yaml --resume name=done seed=7": "--resume: the recipe is not the one that runs/done/final was",
    "train photos.yaml --resume --overwrite": "--overwrite begins anew and --resume continues what is there; leave",
    "train photos.yaml name=begun": "the run folder runs/begun already holds a run that has saved checkpoint-4 of this",
    "train photos.yaml --resume name=begun seed=7": "--resume: the recipe is not the one that runs/begun/checkpoint-4",
    "RANK=0 LOCAL_WORLD_SIZE=2 WORLD_SIZE=2 train photos.yaml": "the run folder runs/photos already holds ",
}
# With what they say, and their exit status.
SAID = {
    "train photos.yaml --resume name=done": ("runs/done is finished; its bundle is runs/done/final", 0),
    # The first of a launcher's processes speaks.
    "RANK=1 LOCAL_WORLD_SIZE=2 WORLD_SIZE=2 train photos.yaml": ("", 2),
    "RANK=1 LOCAL_WORLD_SIZE=2 WORLD_SIZE=2 train photos.yaml --resume name=done": ("", 0),
}
# With what it says of things that take a look into files; torch isn't imported for it.
WITHOUT_TORCH = {
    "train photos.yaml name=new": "data.train.path: there is no file a.json; put it there, or correct the path",
    "train photos.yaml name=new --dry-run": "data.train.path: there is no file a.json; put it there, or correct",
    "train photos.yaml name=new model.projector=gone": "model.projector: there is no folder gone; ",
    "train start.yaml name=new model.start=gone": "data.train.path: there is no file a.json; ",
    "data broken.csv": "broken.csv, line 2: a double quote is opened in this row and never closed; ",
    "check broken.csv": "broken.csv, line 2: a double quote is opened in this row and never closed; ",
    "chat runs/done photos/p00.png why": "photos/p00.png can't be used as a picture: ",
    "chat photos why": "photos is a folder of pictures; did you mean runs/photos? Give the model first: ",
    "chat runs/done --web why": "--web takes pictures and questions on its page; leave them out",
}
PROGRAM = """
import os, sys
class Heavy:
    def find_spec(self, name, path=None, target=None):
        if name in sys.argv[1:]:
            raise AssertionError(f"{name} is imported")
sys.meta_path.insert(0, Heavy())
from basic_lite.cli import main
for line in sys.stdin.read().splitlines():
    print("> " + line, file=sys.stderr)
    words = line.split()
    launcher = dict(word.split("=") for word in words if word.startswith(("RANK=", "WORLD_", "LOCAL_")))
    os.environ.update(launcher)
    try: main([word for word in words if word.split("=")[0] not in launcher])
    except SystemExit as stop: print(f"= {stop.code}", file=sys.stderr)
    for name in launcher: del os.environ[name]
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "p00.png").touch()
    (tmp_path / "broken.csv").write_text('image,caption\nphotos/p00.png,"a')
    for model in ("v", "l"):
        (tmp_path / model).mkdir()
        (tmp_path / model / "config.json").write_text("{}")
    for name in ("photos", "other"):
        final = tmp_path / "runs" / name / "final"
        final.mkdir(parents=True)
        (final / "manifest.json").write_text("{}")
        (final.parent / "parts.json").write_text('[{"part": "LLM"}]')
    (tmp_path / "photos.yaml").write_text(RECIPE)
    (tmp_path / "start.yaml").write_text(RECIPE.replace("{vision: v, llm: l}", "{start: runs/done}"))
    recipe = load_recipe(tmp_path / "photos.yaml", ["name=done"])
    _write_run(tmp_path, recipe)
    _write_run(tmp_path, recipe.model_copy(update={"name": "begun"}), bundle="checkpoint-4")
    # A run that goes on from it has its models' names from there.
    begun = {"name": "more", "model": recipe.model.model_copy(update={"start": "runs/done"})}
    _write_run(tmp_path, recipe.model_copy(update=begun))
    return tmp_path


def _write_run(here: Path, recipe: Recipe, *, bundle: str = "final") -> None:
    """A run with a bundle that holds together."""
    final = here / "runs" / recipe.name / bundle
    final.mkdir(parents=True)
    (final.parent / "parts.json").write_text('[{"part": "LLM"}]')
    (final / "recipe.json").write_text(recipe.model_dump_json())
    (final / "projector.safetensors").write_bytes(b"")
    files = {name: {"sha256": sha256(final / name)} for name in ("recipe.json", "projector.safetensors")}
    facts = {"format": 1, "stage": 1, "step": 4, "total_steps": 4, "data": {"samples": 16}, "machine": {}}
    facts |= {"models": {"vision": "v", "llm": "l"}, "model_facts": {}, "files": files}
    (final / "manifest.json").write_text(json.dumps(facts))


def test_errors_that_a_name_tells_come_before_heavy_imports(here: Path) -> None:
    expected = {command: (f"error: {text}", 2) for command, text in REFUSED.items()} | SAID
    require_said(expected, here, "torch", "transformers", "accelerate", "datasets", "PIL")


def test_errors_that_a_file_tells_come_before_torch(here: Path) -> None:
    require_said({command: (f"error: {text}", 2) for command, text in WITHOUT_TORCH.items()}, here, "torch._C")


@pytest.mark.parametrize("model", ["gone", "no/such", "/gone"])
def test_where_a_model_is_missing_too_the_run_tells_all_at_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.chdir(here)
    for plan in (False, True):
        look_at_inputs(load_recipe("photos.yaml", [f"model.llm={model}"]), plan=plan)
        with pytest.raises(UserError, match=r"data\.train\.path: there is no file a\.json"):
            look_at_inputs(load_recipe("photos.yaml"), plan=plan)


def require_said(expected: dict[str, tuple[str, int]], here: Path, *without: str) -> None:
    """The commands say that, with that status, where these packages can't be imported."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *without],
        input="\n".join(expected), capture_output=True, text=True, cwd=here, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    blocks = result.stderr.split("> ")[1:]
    assert len(blocks) == len(expected), result.stderr
    for (command, (text, status)), block in zip(expected.items(), blocks, strict=True):
        asked, *said, left = block.splitlines()
        assert asked == command and left == f"= {status}", block
        assert said == [] if not text else text.removeprefix("error: ") in "\n".join(said), block
        assert text.startswith("error: ") == "".join(said).startswith("error: "), block


def test_data_of_a_recipe_is_not_missed_where_other_data_is_given(tmp_path: Path) -> None:
    """`check photos --recipe mine.yaml` puts the photos where that recipe has nothing."""
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.partition("data:")[0] + "data: {template: v1}\n")
    require_keys(path, ["data.train.columns.answer=text"])


def test_wrong_keys_of_data_are_told_with_the_others(tmp_path: Path) -> None:
    """Those of data were told once the others were right."""
    (tmp_path / "mine.yaml").write_text(RECIPE)
    with pytest.raises(UserError, match="has 3 problems") as told:
        require_keys(tmp_path / "mine.yaml", ["traning.max_steps=1", "data.templat=v1", "data.train.colums.answer=a"])
    assert "did you mean `data.template`" in str(told.value) and "`data.train.columns" in str(told.value)


@pytest.mark.long
def test_data_and_check_import_nothing_that_only_a_training_needs() -> None:
    """A third of what they took from start to end."""
    program = (
        "import sys, basic_lite.tools.check.command, basic_lite.tools.data.command\n"
        "heavy = {'torch', 'bitsandbytes', 'peft', 'liger_kernel', 'datasets', 'basic_lite.run'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
