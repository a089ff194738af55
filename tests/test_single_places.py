"""What comes from outside is opened, printed and believed in few places; a new one shows here.

Seen is what is written with the names below, called or handed on, under those names: ``from json import loads as f``
shows as well, ``getattr(path, "read_" + "text")`` doesn't, nor a library's own way to read a file.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "basic_lite"

# What opens or reads a file.
READERS = {
    "open", "fdopen", "read_bytes", "read_text", "loads", "load", "safe_load", "full_load", "unsafe_load", "load_file",
    "safe_open", "memmap", "fromfile", "loadtxt", "genfromtxt",
}  # fmt: skip
# Of these many things are called the same; handed on uncalled, they count only with one of these before them.
COMMON, MODULES = {"open", "load"}, {"", "Path", "Image", "io", "os", "json", "yaml", "np", "numpy", "torch", "gzip"}

# Who may call them, each with its reason: all else goes through ``outside.py``.
KNOWN = {
    "what `outside.py` is for": """
outside.py: open_file: os.fdopen
outside.py: open_file: os.open
outside.py: parse_json: json.loads
""",
    "the package's own file, or one that this command has just written": """
demo/place.py: scores_of: json.loads
demo/place.py: scores_of: path.read_text
demo/report.py: show_report: json.loads
demo/report.py: show_report: place.world.eval.read_text
demo/run.py: _prepare: json.loads
demo/run.py: _prepare: marker.read_text
demo/world.py: write_world: json.loads
demo/world.py: write_world: marker.read_text
model/known_names.py: known_models: _KNOWN.read_text
model/known_names.py: known_models: json.loads
tools/export/files.py: _plain: json.loads
tools/export/files.py: write_tokenizer: json.loads
tools/export/files.py: write_tokenizer: path.read_text
tools/export/files.py: write_tokenizer: rules.read_text
tools/export/gguf/tokenizer.py: vocabulary_of: file.read_text
tools/export/gguf/tokenizer.py: vocabulary_of: json.loads
tools/export/gguf/weights.py: __init__: index.read_text
tools/export/gguf/weights.py: __init__: json.loads
tools/export/gguf/write.py: _facts: folder / 'preprocessor_config.json'.read_text
tools/export/gguf/write.py: _facts: json.loads
tools/report/html.py: _compiled: resources.files(package).joinpath(template).read_text
tools/report/html.py: fill: resources.files('basic_lite.tools.report').joinpath('style.css').read_text
training/answer_file.py: _read: json.loads
training/answer_file.py: answers_kept: part.open
training/text_probe/texts.py: _rows: json.loads
training/text_probe/texts.py: _rows: resources.files(__package__).joinpath(name).read_text
""",
    "opened by `outside.py`, by a function of ours, or named with its formats": """
data/check.py: check_data: before.load
data/images.py: _reading: Image.open
data/images.py: open_small: opened.load
data/images.py: require_whole: opened.load
data/json_source.py: _line_spans: held.open
data/json_source.py: _spans: held.open
data/opened.py: alone: self.load
data/table_source.py: _lines: self._file.open
data/table_source.py: _not_unicode: self._file.open
demo/place.py: scores_of: load
""",
    "tensors: no format that holds a program is read": """
model/load.py: _projector_state: safe_open
tools/export/gguf/weights.py: rows: safe_open
tools/export/gguf/weights.py: whole: safe_open
tools/export/tensors.py: _unpickled: torch.load
tools/export/tensors.py: dtype: safe_open
tools/export/tensors.py: read_tensor: safe_open
tools/export/tensors.py: tensor_names: safe_open
tools/export/tensors.py: tensor_shape: safe_open
training/tensor_files.py: read_tensors: load_file
training/trained_on.py: read_record: safe_open
""",
    "what another part of this program or the system has written, or inside a try": """
tools/data/write.py: recipe_text: yaml.load
tools/doctor/looks.py: _limit: path.read_text
tools/doctor/probe.py: ask: json.loads
tools/export/card.py: licence_of: RepoCard.load
""",
}
ALLOWED = {line for lines in KNOWN.values() for line in lines.split("\n") if line}

# Functions that print what no stranger has written, or text that is made fit before.
PRINTERS = {
    "cli.py": {"_print_version", "_options"}, "console.py": {"show", "show_entry"},
    "commands/common.py": {"note"}, "data/check.py": {"show"}, "training/progress.py": {"show"},
    "tools/dry_run.py": {"_show_sample"}, "tools/estimate.py": {"estimate", "_show"},
    "tools/data/command.py": {"_check_and_show"}, "tools/doctor/looks.py": {"main"},
    "tools/chat/terminal.py": {"next_line", "ask"}, "tools/inspect/command.py": {"inspect"},
    "demo/report.py": {"show_report"}, "demo/language.py": {"train_language"}, "demo/vision.py": {"train_vision"},
    "demo/rebuild.py": {"rebuild"},
}  # fmt: skip

# Configurations that no program can come with.
PLAIN_CONFIGURATIONS = {"GenerationConfig", "LlavaConfig"}
# What may only be given as False: else a stranger's program is run, or a shell reads a stranger's text.
NEVER = {"trust_remote_code", "allow_pickle", "shell"}
PROGRAMS = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}


@cache
def nodes(source: str) -> list[tuple[str, ast.AST, bool]]:
    """Each part of a source: the function that it stands in, the part, and whether it is what a call calls."""

    def inside(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST, bool]]:
        for child in ast.iter_child_nodes(node):
            yield function, child, isinstance(node, ast.Call) and child is node.func
            name = child.name if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
            yield from inside(child, name)

    return list(inside(ast.parse(source), ""))


def named(node: ast.AST) -> tuple[str, ast.expr | None]:
    """The last name of an expression, and what it is taken from."""
    if isinstance(node, ast.Attribute):
        return node.attr, node.value
    return (node.id, None) if isinstance(node, ast.Name) else ("", None)


def calls(source: str, names: set[str] | None = None) -> Iterator[tuple[str, str, ast.Call, str]]:
    """Each call: what is called, on what, the call, and the function that it stands in."""
    for function, node, _ in nodes(source):
        if isinstance(node, ast.Call):
            name, on = named(node.func)
            if name and (names is None or name in names):
                yield name, "" if on is None else ast.unparse(on), node, function


@cache
def ours() -> list[tuple[str, str]]:
    return [
        (path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))
    ]


def writes(on: str, call: ast.Call) -> bool:
    """Whether a call of ``open`` writes, and no more: then its file is ours, and ``saving`` is about it."""
    place = 1 if on in MODULES else 0
    modes = [*call.args[place : place + 1], *(one.value for one in call.keywords if one.arg == "mode")]
    texts = [one.value for mode in modes for one in ast.walk(mode) if isinstance(one, ast.Constant)]
    modes_only = [one for one in texts if isinstance(one, str)]
    return bool(modes_only) and all(set(one) & set("wax") and "+" not in one for one in modes_only)


def opened(file: str, source: str) -> set[str]:
    """What reads a file past ``outside.py``."""
    found = {
        f"{file}: {function}: {on}.{name}" if on else f"{file}: {function}: {name}"
        for name, on, call, function in calls(source, READERS)
        if (on or name != "read_text")  # without a dot it is that of ``outside.py``
        and not (name == "open" and on != "os" and writes(on, call))
    }  # fmt: skip
    for function, node, is_called in nodes(source):
        name, on = named(node)
        if name in READERS and not is_called and isinstance(getattr(node, "ctx", None), ast.Load):
            before = "" if on is None else ast.unparse(on)
            if (before or name != "read_text") and (name not in COMMON or (before in MODULES and name != "load")):
                found.add(f"{file}: {function}: {ast.unparse(node)}, handed on")
        if isinstance(node, ast.ImportFrom):
            renamed = {one.name for one in node.names if one.name in READERS and one.asname}
            found |= {f"{file}: {function}: {one}, renamed" for one in renamed}
    return found


def printed(file: str, source: str) -> set[str]:
    """What prints something that isn't made fit to print, nor a constant."""
    found = set()
    for name, on, call, function in calls(source, {"print", "echo", "secho", "write", "writelines"}):
        if function in PRINTERS.get(file, set()):
            continue
        if name in ("write", "writelines") and not on.endswith(("stdout", "stderr", "console.file")):
            continue
        given = [*call.args, *(one.value for one in call.keywords if one.arg in ("end", "sep", None))]
        for one in given:
            fit = isinstance(one, ast.Constant) or (isinstance(one, ast.Call) and named(one.func)[0] == "printable")
            if not fit:
                found.add(f"{file}: {function}: {ast.unparse(call)[:60]}")
    for function, node, is_called in nodes(source):
        if named(node)[0] == "print" and not is_called and function not in PRINTERS.get(file, set()):
            found.add(f"{file}: {function}: {ast.unparse(node)}, handed on")
    return found


def believed(file: str, source: str) -> set[str]:
    """What may run a program that a stranger's file brings."""
    found = set()
    for function, node, _ in nodes(source):
        given: dict[str | None, ast.expr] = {}
        if isinstance(node, ast.Call):
            given = {one.arg: one.value for one in node.keywords}
            name, on = named(node.func)
            before = "" if on is None else ast.unparse(on)
            loads = name in ("from_pretrained", "from_config") and before not in PLAIN_CONFIGURATIONS
            pickled = name == "load" and before == "torch" and ast.unparse(given.get("weights_only", node)) != "True"
            runs = name in ("eval", "exec", "system", "popen") and before in ("", "os")
            if (loads and "trust_remote_code" not in given) or pickled or runs:
                found.add(f"{file}: {function}: {ast.unparse(node)[:80]}")
        elif isinstance(node, ast.Dict):
            both = zip(node.keys, node.values, strict=True)
            given = {str(key.value): value for key, value in both if isinstance(key, ast.Constant)}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [one.name for one in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found |= {f"{file}: import {one}" for one in modules if one.split(".")[0] in PROGRAMS}
        for name in NEVER & given.keys():
            if ast.unparse(given[name]) != "False":
                found.add(f"{file}: {function}: {name}={ast.unparse(given[name])}")
    return found


def test_every_place_is_known() -> None:
    found = {one for file, source in ours() for one in opened(file, source)}
    assert found - ALLOWED == set()
    assert ALLOWED - found == set(), "these are no more"
    assert {one for file, source in ours() for one in printed(file, source)} == set()


def test_every_load_of_a_model_runs_no_program() -> None:
    assert {one for file, source in ours() for one in believed(file, source)} == set()


# Who may write a file by its name; all else goes through ``whole_file.py``, which follows no link and writes the same
# bytes on all systems: with the line ends of Windows, a template for llama.cpp or Ollama makes other prompts.
WRITERS = {
    "whole_file.py: whole_file: open",
    # Into a folder or under a name that is new, or that is looked at before.
    "demo/photos.py: write_photos: draft / 'captions.csv'.open", "demo/compare.py: _train_and_ask: output.open",
    "tools/predictions.py: require_writable: path.open", "training/run_folder.py: require_writable: scratch.touch",
    "training/answer_file.py: answers_kept: part.open",
    # Its file is made anew when a run begins or goes on (``RunLog.keep_until``).
    "training/log.py: write: self.path.open",
}  # fmt: skip


def written(file: str, source: str) -> set[str]:
    """What writes a file past ``whole_file.py``."""
    return {
        f"{file}: {function}: {on}.{name}" if on else f"{file}: {function}: {name}"
        for name, on, call, function in calls(source, {"open", "write_text", "write_bytes", "touch"})
        if name != "open" or writes(on, call) or (on, function) == ("part", "answers_kept")
    }


def test_a_file_is_written_in_one_place() -> None:
    assert {one for file, source in ours() for one in written(file, source)} == WRITERS
    assert written("a.py", "p.write_text(x)") and written("a.py", "with p.open('a') as f: pass")


@pytest.mark.parametrize(
    "text",
    ["open(p).read()", "open('a')", "open(p, 'r+')", "p.read_text()", "json.loads(x)", "file.open()", "p.open('r')",
     "os.open(p, os.O_RDONLY)", "os.open(p, os.O_WRONLY)", "np.load(p, allow_pickle=True)", "Image.open(p)",
     "map(Path.read_text, names)", "map(open, names)", "map(json.loads, lines)", "from json import loads as f",
     "np.fromfile(p)", "torch.load(p)"],
)  # fmt: skip
def test_a_new_place_that_opens_would_show(text: str) -> None:
    assert opened("training/trained_on.py", text)


@pytest.mark.parametrize(
    "text",
    ["console.print(f'{x}')", "print('run', name)", "notes.print(name)", "sys.stderr.write(name)", "print(*names)",
     "print('a', end=name)", "print(f(name, printable(x)))", "map(print, names)", "typer.echo(name)"],
)  # fmt: skip
def test_a_new_place_that_prints_would_show(text: str) -> None:
    assert printed("a.py", text)


@pytest.mark.parametrize(
    "text",
    ["pipeline('t', trust_remote_code=True)", "load_dataset(x, trust_remote_code=given)", "f(**{'shell': True})",
     "AutoModel.from_pretrained(x)", "subprocess.run(name, shell=True)", "np.load(p, allow_pickle=True)",
     "torch.load(p)", "torch.load(p, weights_only=False)", "eval(x)", "os.system(x)", "import pickle"],
)  # fmt: skip
def test_a_new_place_that_believes_would_show(text: str) -> None:
    assert believed("a.py", text)


@pytest.mark.parametrize("look", [opened, printed, believed])
def test_what_is_allowed_everywhere(look: Callable[[str, str], set[str]]) -> None:
    fine = ["p.open('ab')", "open(p, mode='w')", "read_text(p)", "print('a')", "print(printable(x))", "file.write(x)",
            "AutoModel.from_pretrained(x, trust_remote_code=False)", "subprocess.run([name])",
            "torch.save(x, p)", "self.open = True", "if look.open: pass"]  # fmt: skip
    assert [text for text in fine if look("a.py", text)] == []


def test_pictures_are_opened_in_one_place_with_their_formats() -> None:
    found = [
        (file, call)
        for file, source in ours()
        for name, on, call, _ in calls(source, {"open"})
        if (name, on) == ("open", "Image")
    ]
    assert [file for file, _ in found] == ["data/images.py"]
    assert "formats" in {one.arg for one in found[0][1].keywords}


def test_a_bundle_is_read_in_one_place() -> None:
    """Its manifest is believed by ``manifest.py`` alone, and its tensors by ``tensor_files.py``."""
    uses = {
        name: {file for file, source in ours() if f"{name}(" in source} for name in ("read_manifest", "read_tensors")
    }
    assert uses["read_manifest"] == {"training/manifest.py", "training/bundle_files.py"}
    assert {file.split("/")[0] for file in uses["read_tensors"]} <= {"training", "tools"}
