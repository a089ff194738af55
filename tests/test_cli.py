"""The command line: what it answers, how fast, with which exit status, and never with a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from basic_lite import __version__, cli
from basic_lite.commands import asking
from basic_lite.errors import Interrupted, NoMemory, UserError
from basic_lite.tools.report.page import write_report

GOOD = "name: run\nstage: 2\nmodel: {vision: v, llm: l}\nlora: {enabled: true}\ndata: {train: {path: d.json}}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD, encoding="utf-8")
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; returns exit status, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        code = stopped.value.code
        return (code if isinstance(code, int) else 0), out, err

    return run


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, name: str, function: Callable[..., Any]) -> None:
    """Put ``function`` where the command imports it from, whatever that module is made of."""
    stand_in_module = types.ModuleType(module)
    setattr(stand_in_module, name, function)
    monkeypatch.setitem(sys.modules, module, stand_in_module)


@pytest.mark.parametrize("columns", [40, 80])
def test_an_error_breaks_between_words_on_a_terminal(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    text = "there is no checkpoint-of-that-name in runs/photos-of-my-cats-and-dogs-in-the-garden; name another one\n"
    text += "  fix: give it a folder with a transformers checkpoint, or fetch it first"
    monkeypatch.setenv("COLUMNS", str(columns))

    def refuse(*arguments: object, **options: object) -> None:
        raise UserError(text)

    stand_in(monkeypatch, "basic_lite.tools.runs", "show_runs", refuse)
    assert run("runs")[2] == f"error: {text}\n"  # a pipe
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    err = run("runs")[2]
    assert err.split() == f"error: {text}".split() and "\n  fix:" in err
    assert all(len(line) <= columns or " " not in line.strip() for line in err.splitlines())


# --- help ------------------------------------------------------------------------------------------------


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        timeout=60,
    )


def test_help_imports_nothing_heavy() -> None:
    listing = (
        "import sys\nfrom basic_lite.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as stop: assert not stop.code\n"
        "print('\\nIMPORTED', *sys.modules)"
    )
    result = python("-c", listing)
    assert result.returncode == 0, result.stderr
    assert "train" in result.stdout
    imported = set(result.stdout.rpartition("IMPORTED")[2].split())
    heavy = {"torch", "transformers", "numpy", "pydantic", "ruamel", "PIL", "datasets", "peft", "matplotlib"}
    assert not heavy & imported


def test_help_answers_at_once() -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        result = python("-m", "basic_lite", "--help")
        seconds.append(time.perf_counter() - started)
        assert result.returncode == 0, result.stderr
    # 0.1 s on a quiet machine; the product's bound is 0.5 s, the rest is for a busy one.
    assert min(seconds) < 1.5


def test_module_and_function_say_the_same_version(run: Callable[..., tuple[int, str, str]]) -> None:
    result = python("-m", "basic_lite", "--version")
    assert result.stdout == f"basic-lite {__version__}\n"
    assert run("--version") == (0, result.stdout, "")


@pytest.mark.parametrize("command", [[], ["train"], ["run"], ["eval"], ["demo"], ["chat"], ["keys"]])
def test_every_command_has_help(run: Callable[..., tuple[int, str, str]], command: list[str]) -> None:
    for option in ("--help", "-h"):
        code, out, err = run(*command, option)
        assert (code, err) == (0, "")
        assert out.startswith("Usage: basic-lite")
    if not command:
        assert run()[:2] == (0, out)


def test_no_description_of_a_command_is_cut_at_80_columns() -> None:
    result = python("-m", "basic_lite", "--help", COLUMNS="80")
    listed = result.stdout.partition("Commands:")[2]
    assert listed.count("\n  ") > 17 and "..." not in listed


# --- what the commands call ------------------------------------------------------------------------------


def test_train_gives_recipe_overrides_and_resume(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    calls: list[Any] = []
    stand_in(monkeypatch, "basic_lite.run", "train", lambda *a, **k: calls.append((a, k)))
    overrides = ("training.max_steps=3", "name=other")
    assert run("train", recipe, *overrides, "--resume", "--checkpoint", "2") == (0, "", "")
    (((loaded,), keywords),) = calls
    assert (loaded.name, loaded.training.max_steps) == ("other", 3)
    assert keywords == {"resume": True, "checkpoint": 2, "overwrite": False, "report": write_report}
    assert run("train", recipe, "--overwrite") == (0, "", "") and calls[1][1]["overwrite"]
    assert run("train", recipe, "--checkpoint", "2")[0] == 2


def test_train_takes_a_shipped_recipe_and_says_so(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    stand_in(monkeypatch, "basic_lite.run", "train", lambda loaded, **_: seen.append(loaded))
    code, _, err = run("train", "recipes/7b_qlora.yaml")
    assert code == 0
    assert "using the shipped recipe" in err
    assert seen[0].name == "7b_qlora"


@pytest.mark.parametrize("command", ["train", "estimate"])
def test_without_a_recipe_the_shipped_ones_are_named(run: Callable[..., tuple[int, str, str]], command: str) -> None:
    code, _, err = run(command)
    assert code == 2 and "7b_qlora" in err and "demo_stage1" in err


def test_dry_run_trains_nothing(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    seen: list[Any] = []
    stand_in(monkeypatch, "basic_lite.tools.dry_run", "dry_run", lambda loaded, **_: seen.append(loaded))
    monkeypatch.setitem(sys.modules, "basic_lite.run", None)
    assert run("train", recipe, "--dry-run")[0] == 0
    assert seen[0].name == "run"
    code, _, err = run("train", recipe, "--dry-run", "--resume")
    assert code == 2
    assert "--resume" in err


def test_eval_demo_and_chat_hand_on_their_options(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def record(*arguments: Any, **keywords: Any) -> None:
        calls.append((arguments, keywords))

    # The run, the data and the pictures aren't there.
    monkeypatch.setattr(asking, "_look_first", lambda *_: None)
    stand_in(monkeypatch, "basic_lite.tools.model_place", "look_at_model", lambda *_: None)
    stand_in(monkeypatch, "basic_lite.tools.chat.words", "split_words", lambda *_: None)
    stand_in(monkeypatch, "basic_lite.tools.evaluate", "evaluate_run", record)
    stand_in(monkeypatch, "basic_lite.demo.run", "demo", record)
    stand_in(monkeypatch, "basic_lite.tools.chat.command", "chat", record)
    assert (
        run("eval", "r", "--data", "d.json", "--batch", "3", "--limit", "5", "--device", "cpu", "--max-tokens", "7")[0]
        == 0
    )
    assert run("demo", "--out", "o", "--seed", "2")[0] == 0
    assert run("chat", "r", "i.png", "what?")[0] == 0
    chosen = ["--max-tokens", "9", "--temperature", "0.5", "--device", "cpu", "--dtype", "float16"]
    assert run("chat", "r", "i.png", "j.png", "-q", "what?", *chosen)[0] == 0
    assert run("chat", "r", "--web", "--port", "8000", "--no-browser")[0] == 0
    talk: dict[str, Any] = {"question": None, "max_new_tokens": 256, "temperature": 0.0, "device": "auto"}
    talk |= {"dtype": "auto", "web": False, "port": None, "browser": True}
    options = {"image_dir": None, "batch_size": 3, "max_new_tokens": 7, "out": None, "limit": 5, "device": "cpu"}
    options |= {"template": None, "held_out": False, "metric": None, "controls": 500, "benchmark": None}
    options |= {"annotations": None, "instruction": None}
    assert calls == [
        ((Path("r"), Path("d.json")), options),
        ((Path("o"),), {"seed": 2, "rebuild": False, "compare": False}),
        (("r", ["i.png", "what?"]), talk),
        (
            ("r", ["i.png", "j.png"]),
            {**talk, "question": "what?", "max_new_tokens": 9, "temperature": 0.5}
            | {"device": "cpu", "dtype": "float16"},
        ),
        (("r", []), {**talk, "web": True, "port": 8000, "browser": False}),
    ]


def test_keys_lists_them_all_or_a_section(run: Callable[..., tuple[int, str, str]]) -> None:
    code, everything, _ = run("keys")
    assert code == 0
    assert "training.micro_batch  (an integer of at least 1 and at most 4,096; default 1)" in everything
    assert run("keys", "lora")[1] in everything
    code, out, err = run("keys", "lroa")
    assert (code, out) == (2, "")
    assert "there is no recipe key or section 'lroa'; did you mean 'lora" in err
    assert "'zzz'; `basic-lite keys` lists them all" in run("keys", "zzz")[2]


# --- what goes wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train"], "Missing argument"),
        (["train", "nothing.yaml"], "doesn't exist"),
        (["train", "7b_qlor"], "did you mean recipes"),
        (["train", "7b_qlora", "lora.rnk=3"], "did you mean `lora.rank`?"),
        (["train", "7b_qlora", "other.yaml"], "`basic-lite run` takes several"),
        (["run"], "Missing argument"),
        (["run", "name=x"], "no recipe is named"),
        (["run", "7b_qlora", "2:name=x"], "there are 1; count them from 1"),
        (["train", "7b_qlora", "--training.lr", "3"], "key.path=value"),
        (["train", "7b_qlora", "--lr=3"], "key.path=value"),
        (["estimate", "7b_qlora", "--epochs=3"], "key.path=value"),
        (["estimate", "7b_qlora", "--gpu"], "See `basic-lite estimate --help`."),
        (["estimate", "7b_qlora", "--gpu", "rtx409"], "(did you mean RTX 4090?)"),
        (
            ["estimate", "small_pretrain", "training.device=cpu", "--gpu", "rtx4090"],
            "--gpu names a card, RTX 4090, and the recipe asks for the CPU (training.device=cpu); leave --gpu out, or",
        ),
        (["trian"], "'train'"),
        (["eval", "run"], "--data"),
        (["chat"], "Missing argument"),
        (["chat", "run", "--port", "8000"], "add --web"),
        (["eval", "run", "--data", "d", "--batch", "0"], "--batch"),
        (["eval", "run", "--data", "d", "--batch", "x"], "for '--batch': 'x' is not a whole number\n"),
        (
            ["eval", "run", "--data", "d", "--device", "xyz"],
            "for '--device': 'xyz' is not one of 'auto', 'cpu', 'cuda'\n",
        ),
        (["eval", "run", "--data", "d", "--device", "gpu"], "did you mean cuda?"),
        (["chat", "run", "--dtype", "bf16"], "for '--dtype': 'bf16' is not one of 'auto', 'float32', 'bfloat16'"),
        (["chat", "run", "--dtype", "bf16"], "did you mean bfloat16?"),
        (["chat", "run", "--web", "--port", "80x"], "for '--port': '80x' is not a whole number\n"),
        (["chat", "run", "--temperature", "hot"], "'hot' is not a number\n"),
        (["train", "7b_qlora", "training.device=gpu"], "did you mean cuda?"),
        (["demo", "--seed", "-1"], "--seed"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_bad_input_is_an_error_with_status_2(
    run: Callable[..., tuple[int, str, str]], arguments: list[str], says: str
) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert says in err


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_user_errors_of_the_work_itself(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    stand_in(monkeypatch, "basic_lite.run", "train", raising(UserError("no such model; change model.llm")))
    assert run("train", recipe) == (2, "", "error: no such model; change model.llm\n")
    monkeypatch.setenv("BASIC_LITE_DEBUG", "1")
    with pytest.raises(UserError):
        cli.main(["train", str(recipe)])


def test_a_stopped_run_names_the_command_that_goes_on(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    stand_in(monkeypatch, "basic_lite.run", "train", raising(Interrupted(Path("runs", "run", "checkpoint-7"))))
    code, out, err = run("train", recipe, "lora.targets=[q_proj, v_proj]")
    assert (code, out) == (130, "")
    assert str(Path("runs", "run", "checkpoint-7")) in err
    assert f'basic-lite train {recipe} "lora.targets=[q_proj, v_proj]" --resume' in err
    stand_in(monkeypatch, "basic_lite.run", "train", raising(Interrupted()))
    code, _, err = run("train", recipe)
    assert code == 130
    assert "--resume" not in err


def test_control_c_is_no_traceback(run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "basic_lite.demo.run", "demo", raising(KeyboardInterrupt()))
    assert run("demo")[0] == 130


def test_a_training_that_is_stopped_at_once_says_what_is_left(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, recipe: Path, tmp_path: Path
) -> None:
    stand_in(monkeypatch, "basic_lite.run", "train", raising(KeyboardInterrupt()))
    where = [recipe, f"output={tmp_path}", "name=one"]
    said = run("train", *where)
    assert said[0] == 130 and f"no checkpoint was saved in {tmp_path / 'one'}" in said[2]
    (tmp_path / "one" / "checkpoint-3").mkdir(parents=True)
    for name in ("manifest.json", "training_state.safetensors"):
        (tmp_path / "one" / "checkpoint-3" / name).write_text("{}")
    assert "checkpoint-3; continue with: basic-lite train " in run("train", *where)[2]


def test_a_place_without_rights_is_one_error(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "basic_lite.demo.run", "demo", raising(PermissionError(13, "Permission denied", "a/b")))
    status, _, err = run("demo")
    assert status == 2 and err.startswith("error: a/b can't be read or written here; allow it")


@pytest.mark.parametrize("wrapped", [False, True])
def test_too_little_memory_is_no_traceback(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    """Where no command knows better; also where a checkpoint couldn't be read for it."""
    error: Exception = RuntimeError("CUDA out of memory")
    if wrapped:
        error, error.__cause__ = UserError("it can't be read"), error
    stand_in(monkeypatch, "basic_lite.demo.run", "demo", raising(error))
    code, _, err = run("demo")
    assert code == 2 and err.startswith("error: out of memory; close other programs that use it, or give --device cpu")
    stand_in(monkeypatch, "basic_lite.demo.run", "demo", raising(NoMemory("out of memory; lower --batch")))
    assert run("demo")[2] == "error: out of memory; lower --batch\n"


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "basic_lite.demo.run", "demo", raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


def test_output_survives_a_narrow_encoding(recipe: Path) -> None:
    result = python("-m", "basic_lite", "keys", "supervision", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert result.returncode == 0, result.stderr
    assert "supervision.lambda_das" in result.stdout
