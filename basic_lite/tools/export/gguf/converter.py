"""llama.cpp's own converter for the text part, for architectures and tokenizers that aren't written here."""

import subprocess
import sys
import tempfile
from pathlib import Path

from basic_lite.errors import UserError
from basic_lite.tools.export.gguf.weights import GgufType
from basic_lite.whole_file import write_whole

_SCRIPT = "convert_hf_to_gguf.py"
OTHERWISE = "give --llama-cpp a folder with llama.cpp's source, whose own converter then writes the text part"
"""What mends a refusal of what isn't written here."""


def require_converter(llama_cpp: Path) -> Path:
    """The converter in llama.cpp's source.

    Raises:
        UserError: it isn't there.
    """
    script = llama_cpp / _SCRIPT
    if not script.is_file():
        raise UserError(f"--llama-cpp {llama_cpp} has no {_SCRIPT}; give it a folder with llama.cpp's source")
    return script


def convert_text(folder: Path, out: Path, kind: GgufType, llama_cpp: Path, template: str, name: str) -> None:
    """Run the converter on a llava-hf folder: it takes `text_config` and leaves the vision tensors out.

    It gets a folder of links with another chat template, since the one for llama.cpp differs.

    Raises:
        UserError: there is no converter at that place, or it refused the model.
    """
    _run(folder, out, llama_cpp, template, ["--outtype", kind, "--model-name", name])


def check_converter(folder: Path, llama_cpp: Path, template: str) -> None:
    """See that the converter takes a folder's configuration and tokenizer; its weights needn't be there yet.

    Raises:
        UserError: as `convert_text`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        _run(folder, Path(scratch) / "vocabulary.gguf", llama_cpp, template, ["--vocab-only"])


def _link(link: Path, file: Path) -> None:
    try:
        link.symlink_to(file)
    except OSError as error:
        raise UserError(
            f"llama.cpp's converter gets a folder of links, and this system makes none ({error.strerror or error}); "
            "on Windows switch Developer Mode on (Settings, System, For developers)"
        ) from error


def _run(folder: Path, out: Path, llama_cpp: Path, template: str, options: list[str]) -> None:
    script = require_converter(llama_cpp)
    with tempfile.TemporaryDirectory() as scratch:
        for file in folder.resolve().iterdir():
            _link(Path(scratch) / file.name, file)
        write_whole(Path(scratch) / "chat_template.jinja", template)
        command = [sys.executable, str(script), scratch, "--outfile", str(out), *options]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not out.is_file():
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["it said nothing"]
        raise UserError(f"llama.cpp's converter could not write the text part: {last[0].strip()}")
