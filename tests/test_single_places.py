"""What comes from outside is opened, printed and believed in few places; a new one shows here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "basic_lite"
OWN = "the package's own file, or one that this command has just written"

# What opens or reads a file, and who may call it: all else goes through ``outside.py``.
READERS: dict[str, dict[str, str]] = {
    "open": {},
    "read_bytes": {},
    "read_text": {
        "demo/place.py": OWN, "demo/report.py": OWN, "demo/run.py": OWN, "demo/world.py": OWN, "model/known.py": OWN,
        "training/text_probe/texts.py": OWN,
        "tools/report/html.py": OWN, "tools/export/files.py": OWN, "tools/export/gguf/tokenizer.py": OWN,
        "tools/export/gguf/weights.py": OWN, "tools/export/gguf/write.py": OWN,
        "tools/doctor/looks.py": "the system's own limits, below /sys",
    },
    "loads": {
        "outside.py": "JSON from outside", "demo/place.py": OWN, "demo/report.py": OWN, "demo/run.py": OWN,
        "demo/world.py": OWN, "model/known.py": OWN, "training/text_probe/texts.py": OWN,
        "tools/export/files.py": OWN, "training/answer_file.py": OWN,
        "tools/export/gguf/tokenizer.py": OWN, "tools/export/gguf/weights.py": OWN, "tools/export/gguf/write.py": OWN,
        "tools/doctor/probe.py": "of a process of this program",
        "training/trained_on.py": "inside a try for whatever is wrong",
    },
    "load": {
        "tools/export/card.py": "inside a try", "tools/export/tensors.py": "weights_only",
        "tools/data/write.py": "YAML of a recipe that was read before",
        "demo/place.py": "a function that makes a model",
    },
    "load_file": {"training/tensor_files.py": "tensors of a bundle"},
    "safe_open": {
        "model/load.py": "a checkpoint's projector", "tools/export/tensors.py": "checkpoints",
        "tools/export/gguf/weights.py": OWN, "training/trained_on.py": "a run's digests",
    },
}  # fmt: skip
# Modules whose ``load`` or ``open`` reads no file of others.
NOT_FILES = {
    "Image", "np", "os", "stack", "self", "held", "_file", "file", "chat", "before", "raw", "webbrowser", "world",
    "opened",
}  # fmt: skip

# Functions that print what no stranger has written, or text that is made fit before.
PRINTERS = {
    "cli.py": {"_print_version", "_options"}, "console.py": {"show", "show_entry"},
    "commands/common.py": {"note"}, "data/prepare.py": {"show"}, "training/progress.py": {"show"},
    "tools/dry_run.py": {"_show_sample"}, "tools/estimate.py": {"estimate", "_show"},
    "tools/data/command.py": {"_check_and_show"}, "tools/doctor/looks.py": {"main"},
    "tools/chat/terminal.py": {"next_line"}, "tools/inspect/command.py": {"inspect"},
    "demo/report.py": {"show_report"},
}  # fmt: skip

# Configurations that no program can come with.
PLAIN_CONFIGURATIONS = {"GenerationConfig", "LlavaConfig"}


@cache
def calls(source: str) -> list[tuple[str, str, ast.Call, str]]:
    """Each call: what is called, on what, the call, and the function that it stands in."""

    def inside(node: ast.AST, function: str) -> Iterator[tuple[str, str, ast.Call, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call):
                called = child.func
                if isinstance(called, ast.Attribute):
                    yield called.attr, ast.unparse(called.value), child, function
                elif isinstance(called, ast.Name):
                    yield called.id, "", child, function
            name = child.name if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
            yield from inside(child, name)

    return list(inside(ast.parse(source), ""))


@cache
def ours() -> list[tuple[str, str]]:
    return [
        (path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))
    ]


def writes(call: ast.Call) -> bool:
    """Whether a call of ``open`` writes: then its file is ours, and ``saving`` is about it."""
    modes = [*call.args, *(one.value for one in call.keywords if one.arg == "mode")]
    texts = [one.value for mode in modes for one in ast.walk(mode) if isinstance(one, ast.Constant)]
    return any(isinstance(one, str) and one and set(one) <= set("rwabx+t") and set(one) & set("wax+") for one in texts)


def readers(file: str, source: str) -> set[str]:
    """Calls of a file that read another one past ``outside.py``."""
    return {
        f"{file}: {on}.{name}" if on else f"{file}: {name}"
        for name, on, call, _ in calls(source)
        if name in READERS and file not in READERS[name] and file != "outside.py"
        and (on or name != "read_text")  # without a dot it is that of ``outside.py``
        and not (name in ("open", "load") and (writes(call) or on.split(".")[-1].split("(")[0] in NOT_FILES))
    }  # fmt: skip


def printers(file: str, source: str) -> set[str]:
    """Calls of a file that print what isn't made fit to print, nor a constant."""
    found = set()
    for name, on, call, function in calls(source):
        prints = (name == "print" and (not on or on.endswith("console"))) or (name, on) == ("echo", "typer")
        if not prints or not call.args or function in PRINTERS.get(file, set()):
            continue
        first = call.args[0]
        fit = isinstance(first, ast.Call) and "printable(" in ast.unparse(first)
        if not (fit or isinstance(first, ast.Constant)):
            found.add(f"{file}: {function}: {ast.unparse(call)[:60]}")
    return found


@pytest.mark.parametrize("kind", [readers, printers], ids=["opened", "printed"])
def test_every_place_is_known(kind: object) -> None:
    found = [one for file, source in ours() for one in sorted(kind(file, source))]  # type: ignore[operator]
    assert found == []


def test_a_new_place_would_show() -> None:
    assert readers("a.py", "x = open(p).read()") == {"a.py: open"}
    assert readers("a.py", "def f(p):\n    return json.loads(p.read_text())") == {
        "a.py: json.loads",
        "a.py: p.read_text",
    }
    assert readers("a.py", "with p.open('ab') as f: pass\nopen(p, mode='w')\nImage.open(p, formats=f)") == set()
    assert printers("a.py", "console.print(f'{x}')\nprint('a')\nprint(printable(x))") == {
        "a.py: : console.print(f'{x}')"
    }


def test_pictures_are_opened_in_one_place_with_their_formats() -> None:
    found = [
        (file, call)
        for file, source in ours()
        for name, on, call, _ in calls(source)
        if (name, on) == ("open", "Image")
    ]
    assert [file for file, _ in found] == ["data/images.py"]
    assert "formats" in {one.arg for one in found[0][1].keywords}


def test_every_load_of_a_model_runs_no_program() -> None:
    for file, source in ours():
        for name, on, call, _ in calls(source):
            if name in ("from_pretrained", "from_config") and on not in PLAIN_CONFIGURATIONS:
                given = {one.arg: ast.unparse(one.value) for one in call.keywords}
                assert given.get("trust_remote_code") == "False", f"{file}: {ast.unparse(call)[:80]}"
            if name == "load" and on == "torch":
                assert "weights_only=True" in ast.unparse(call), file
            assert name not in ("eval", "exec", "system", "popen") or on not in ("", "os"), f"{file}: {name}"


def test_a_bundle_is_read_in_one_place() -> None:
    """Its manifest is believed by ``manifest.py`` alone, and its tensors by ``tensor_files.py``."""
    uses = {
        name: {file for file, source in ours() if f"{name}(" in source} for name in ("read_manifest", "read_tensors")
    }
    assert uses["read_manifest"] == {"training/manifest.py", "training/bundle_files.py"}
    assert {file.split("/")[0] for file in uses["read_tensors"]} <= {"training", "tools"}
