"""Whatever the documents name exists: files, links, recipe keys, commands, modules, names in the code."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from ruamel.yaml import YAML

from basic_lite import __version__
from basic_lite.cli import app
from basic_lite.recipe import describe_keys

ROOT = Path(__file__).resolve().parent.parent
BASES = (ROOT, ROOT / "basic_lite", ROOT / "kernels" / "basic_lite_kernels")
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "bench/README.md",
    "docs/ARCHITECTURE.md",
    "docs/DATA.md",
    "docs/EVAL.md",
    "docs/EXPORT.md",
    "docs/INSPECT.md",
    "docs/MEMORY.md",
    "docs/METHOD.md",
    "docs/PLATFORMS.md",
    "docs/PYTHON.md",
    "docs/TRAINING.md",
    "docs/WALK.md",
)
KEYS = {row.name for row in describe_keys()}
SECTIONS = "|".join({key.split(".")[0] for key in KEYS if "." in key})
FILE = re.compile(r"(?:[\w*-]+/)*[\w*-]+\.(?:py|md)|(?:basic_lite|kernels|tests|bench|recipes|results|\.ci)/[\w./*-]*")
PLACED = re.compile(r"`([A-Za-z_][\w.]*)`\s+(?:in\s+|\()`([\w/.*-]+\.py)`")
KEY = re.compile(rf"((?:{SECTIONS})\.(?!json$)\w+)(?:[=:].*)?")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
TOPS = ("basic_lite", "kernels", "tests", "bench", "recipes")
CODE = [p for top in TOPS for p in (ROOT / top).rglob("*.*") if p.suffix in (".py", ".yaml") and p != Path(__file__)]
WORDS = {word for path in CODE for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}


def named_fault(span: str, folder: Path) -> str | None:
    """What is wrong with a text between backticks; None for what names nothing of ours."""
    if FILE.fullmatch(span):
        return None if any(any(base.glob(span)) for base in (folder, *BASES)) else f"no file {span}"
    if key := KEY.fullmatch(span):
        return None if key[1] in KEYS else f"no recipe key {key[1]}"
    lacking = set(re.findall(r"\w+", span)) - WORDS if re.fullmatch(r"[A-Za-z_][\w.]{3,}", span) else set()
    return f"nothing in the code is called {', '.join(sorted(lacking))}" if lacking else None


def misplaced(prose: str) -> Iterator[str]:
    """Names that aren't in the file in which the text says they are: `X` in `file.py`, or `X` (`file.py`)."""
    for name, file in PLACED.findall(prose):
        texts = [path.read_text(encoding="utf-8") for base in BASES for path in base.glob(file)]
        if texts and not any(set(name.split(".")) <= set(re.findall(r"\w+", text)) for text in texts):
            yield f"no {name} in {file}"


def command_fault(line: str) -> str | None:
    for name in re.findall(r"basic-lite ([a-z][a-z-]*)", line):
        flags = {flag for parameter in COMMANDS[name].params for flag in parameter.opts} if name in COMMANDS else set()
        if name not in COMMANDS or not set(re.findall(r" (--[\w-]+)", line)) <= flags:
            return f"no such command: {line}"
    modules = re.findall(r"(?:^|python3? -m )((?:basic_lite\w*|bench|tests)\.[\w.]+)", line)
    return None if all(map(importlib.util.find_spec, modules)) else f"no such module: {line}"


def faults(text: str, folder: Path) -> list[str]:
    """Everything in a document that leads nowhere."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", prose)
    commands = "\n".join([*spans, *re.findall(r"```bash(.*?)```", text, re.DOTALL)]).splitlines()
    links = [link for link in re.findall(r"\]\((?!https?://)([^)#]+)", prose) if not (folder / link).exists()]
    found = [named_fault(span, folder) for span in spans] + [command_fault(line.split("  #")[0]) for line in commands]
    return [*filter(None, found), *(f"no file {link}" for link in links), *misplaced(prose)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_document_names_exists(name: str) -> None:
    found = faults((ROOT / name).read_text(encoding="utf-8"), (ROOT / name).parent)
    assert not found, "\n".join(found)


WRONG = "`x.py` `docs/x.md` [x](x.md) `training.x=2` `XyzXyz` `basic-lite x` `basic-lite demo --x` `bench.x`"


@pytest.mark.parametrize("text", re.findall(r"`.*?`|\[.*?\)", WRONG))
def test_what_does_not_exist_is_found(text: str) -> None:
    assert len(faults(text, ROOT)) == 1


@pytest.mark.parametrize("text", ["`choose` in `signatures.py`", "`Operations.vocab_kl`\n(`basic_lite/errors.py`)"])
def test_a_name_must_be_in_the_file_named_with_it(text: str) -> None:
    assert len(faults(text, ROOT)) == 1 and not faults("`Operations.vocab_kl` in `signatures.py`", ROOT)


def test_citation_and_workflow() -> None:
    citation, workflow = (YAML(typ="safe").load(ROOT / p) for p in ("CITATION.cff", ".github/workflows/ci.yml"))
    assert citation["version"] == __version__
    assert any(step.get("run") == ".ci/run" for step in workflow["jobs"]["ci"]["steps"])
    systems = workflow["jobs"]["systems"]
    assert systems["strategy"]["matrix"]["os"] == ["ubuntu-latest", "windows-latest", "macos-latest"]
    assert systems["runs-on"] == "${{ matrix.os }}" and systems["defaults"]["run"]["shell"] == "bash"
    runs = [step.get("run", "") for step in systems["steps"]]
    assert any("pip install" in run for run in runs) and any(run.startswith("pytest") for run in runs)
    named = [word for run in runs for word in run.split() if word.startswith("tests/")]
    assert named and all((ROOT / name).exists() for name in named)
    weekly = workflow["jobs"]["weekly"]["strategy"]["matrix"]["run"]
    assert workflow["on"]["schedule"] and ".ci/lowest" in weekly and any("pytest -m soak" in run for run in weekly)
