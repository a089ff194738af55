"""Pages of one look: a template filled in, and written as one file that needs no network."""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from basic_lite.choices import require_file_place
from basic_lite.errors import UserError
from basic_lite.outside import read_text
from basic_lite.whole_file import write_whole


def fill(package: str, template: str, **values: Any) -> str:
    """The text of a page.

    Args:
        package: the one that the template lies in.
        values: what stands in it, beside ``style``.
    """
    style = resources.files("basic_lite.tools.report").joinpath("style.css").read_text(encoding="utf-8")
    return _compiled(package, template).render(style=style, **values)


@cache
def _compiled(package: str, template: str) -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(resources.files(package).joinpath(template).read_text(encoding="utf-8"))


def mark_of(command: str) -> str:
    """What tells a command's own pages from others, in a page's head."""
    return f'<meta name="generator" content="basic-lite {command}">'


def require_own(path: Path, command: str) -> None:
    """Refuse a file for a page that isn't an older page of the same command.

    Raises:
        UserError: something else is there, or no file can be there.
    """
    require_file_place(path, f"{command}.html")
    try:
        if path.exists() and mark_of(command) not in read_text(path, errors="replace")[:2000]:
            raise UserError(f"--out: {path} is there already and is no page of `{command}`; choose another name")
    except OSError as error:
        raise UserError(f"--out: {path} can't be read ({error.strerror or error}); choose another name") from error


def write_page(path: Path, text: str) -> None:
    """Write a page; an older one is replaced, once this one is whole.

    Raises:
        UserError: it can't be written.
    """
    try:
        write_whole(path, text.encode("utf-8", "backslashreplace"))  # a file's name may hold any bytes
    except OSError as error:
        raise UserError(f"can't write {path} ({error.strerror or error}); make room, or allow writing there") from error
