"""Pages of one look: a template filled in, and written as one file that needs no network."""

import os
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from basic_lite.errors import UserError
from basic_lite.training.places import PART


def fill(package: str, template: str, **values: Any) -> str:
    """The text of a page.

    Args:
        package: the one that the template lies in.
        values: what stands in it, beside ``style``.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style = resources.files("basic_lite.tools.report").joinpath("style.css").read_text(encoding="utf-8")
    text = resources.files(package).joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(text).render(style=style, **values)


def write_page(path: Path, text: str) -> None:
    """Write a page; an older one is replaced, once this one is whole.

    Raises:
        UserError: it can't be written.
    """
    scratch = path.with_name(path.name + PART)
    try:
        scratch.write_bytes(text.encode("utf-8", "backslashreplace"))  # a file's name may hold any bytes
        os.replace(scratch, path)
    except OSError as error:
        raise UserError(f"can't write {path} ({error.strerror or error}); make room, or allow writing there") from error
