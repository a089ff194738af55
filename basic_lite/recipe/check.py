"""Values of a recipe file against the schema, key by key: every problem is collected, with its place."""

import math
import os
import re
import shlex
import types
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from basic_lite.choices import meant
from basic_lite.printable import one_line
from basic_lite.recipe.keys import is_section, nearest_key, options, wanted
from basic_lite.recipe.problems import KeyPath, Wrong, plain
from basic_lite.recipe.schema import Section
from basic_lite.recipe.texts import text_problem, texts_in
from basic_lite.recipe.yaml import Document, read_scalar

# What people write where a recipe wants null.
_NOTHING = ("none", "off", "no", "never")
# What turns a section off, by the keys at which people try.
_SWITCHES: dict[KeyPath, str] = {
    **dict.fromkeys((("supervision",), ("supervision", "preset")), "supervision.enabled=false"),
    **dict.fromkeys((("lora",), ("lora", "rank")), "lora.enabled=false"),
    ("quantization",): "quantization.mode=none",
}
# Such as 3,5 and 1,5e-4. What 1,000 means isn't known: one, or a thousand.
_DECIMAL_COMMA = re.compile(r"[+-]?(?:0,\d+|\d+,\d{1,2})(?:e[+-]?\d+)?", re.IGNORECASE)
# A number with something behind it, or with commas at its thousands.
_NUMBER_AND_MORE = re.compile(
    r"(?:(?P<thousands>\d{1,3}(?:,\d{3}){1,5})|(?P<number>\d{1,15}(?:[.,]\d{1,15})?(?:e[+-]?\d{1,2})?))\s*"
    r"(?P<unit>[^\d\s]*)",
    re.IGNORECASE,
)
_UNITS = {"%": Decimal("0.01"), "k": Decimal(1_000), "m": Decimal(1_000_000)}
# Unknown keys of a section that are told one by one.
_SHOWN = 20
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


class Checker:
    """Checks values against the schema key by key; every problem goes to the document, with its place."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def report(self, path: KeyPath, message: str, *, key: bool = False) -> Wrong:
        return self.document.report(self.document.place_of(path, key=key), path, message)

    def section(self, model: type[Section], value: Any, path: KeyPath) -> Any:
        """Checked values of one section, defaults filled in; :class:`Wrong` in place of what is wrong."""
        if isinstance(value, Wrong):
            return value
        if value is None and path in self.document.blank:
            # `lora:` with every key below it commented out: a section all of defaults. A written null may mean "off".
            value = {}
        if not isinstance(value, dict):
            is_source = isinstance(value, str) and "path" in model.model_fields
            mend = self._mend_of_source(value, path) if is_source else _switch(value, path)
            mend = mend or ("; leave it out for its defaults" if value is None else "")
            return self.report(path, f"expected keys ({', '.join(model.model_fields)}), found {plain(value)}{mend}")
        misspelled = set()
        unknown = [key for key in value if key not in model.model_fields]
        if len(unknown) > _SHOWN:
            more, first = len(unknown) - _SHOWN, one_line(unknown[_SHOWN], 80)
            self.report(
                (*path, unknown[_SHOWN]), f"{more:,} more keys from `{first}` on are none; remove them", key=True
            )
        for key in unknown[:_SHOWN]:
            nearest = nearest_key((*path, key))
            holder, _, leaf = (nearest or "").rpartition(".")
            hint = f"did you mean `{nearest}`?"
            if nearest is None:
                hint = f"`{' '.join(['basic-lite keys', *path[:1]])}` lists those that there are"
            elif "." in key and ".".join((*path, key)) == nearest:
                hint = f"in a file keys are nested: write `{leaf}` below `{holder}:`"
            elif leaf == key and self.document.place_of((*path, key), key=True).line:
                hint += f" Then indent it as the keys of `{holder}:`" if holder else " Then don't indent it"
            self.report((*path, key), f"there is no such key; {hint}", key=True)
            misspelled.add(nearest)
        checked: dict[str, Any] = {}
        for key, field in model.model_fields.items():
            here = (*path, key)
            if key in value:
                checked[key] = self.value(field.annotation, field, value[key], here)
            elif ".".join(part for part in here if not part.isdigit()) in misspelled:
                # Reported under the name it was written by.
                checked[key] = Wrong()
            elif field.is_required():
                what = field.description or f"give {wanted(field.annotation)}"
                place = self.document.place_of(path, key=True)
                checked[key] = self.document.report(place, here, f"this key is required and missing; add it: {what}")
            else:
                default = field.get_default(call_default_factory=True)
                checked[key] = default.model_dump() if isinstance(default, Section) else default
        return checked

    def _mend_of_source(self, value: str, path: KeyPath) -> str:
        """The hint of how to name a file or folder; on a command line quoted, since a shell would split it."""
        source = f"{{{'folder' if os.path.isdir(value) else 'path'}: {value}}}"
        if self.document.place_of(path).source != "command line":
            return f"; write {source}"
        key = ".".join(path)
        return f"; write {shlex.quote(f'{key}={source}')}"

    def value(self, annotation: Any, field: FieldInfo, value: Any, path: KeyPath) -> Any:
        members = options(annotation)
        sections = [option for option in members if is_section(option)]
        lists = [option for option in members if get_origin(option) is list]
        if isinstance(value, list) and lists:
            (inner,) = get_args(lists[0])
            if is_section(inner):
                return [self.section(inner, entry, (*path, str(number))) for number, entry in enumerate(value)]
            entries = [self.leaf(inner, (), entry, (*path, str(number))) for number, entry in enumerate(value)]
            return Wrong() if any(isinstance(entry, Wrong) for entry in entries) else entries
        if sections and (isinstance(value, dict) or types.NoneType not in members):
            return self.section(sections[0], value, path)
        return self.leaf(annotation, field.metadata, value, path)

    def leaf(self, annotation: Any, metadata: Sequence[Any], value: Any, path: KeyPath) -> Any:
        """A value that is no section: pydantic decides, the message is ours."""
        if isinstance(value, Wrong):
            return value
        members = options(annotation)
        if isinstance(value, list) and any(get_origin(option) is tuple for option in members):
            value = tuple(value)
        texts_allowed = [word for option in members if get_origin(option) is Literal for word in get_args(option)]
        if str in members and value == "":
            return self.report(path, "expected text, found an empty text; write null, or leave the key out")
        found = plain(list(value) if isinstance(value, tuple) else value)
        message = f"expected {wanted(annotation, metadata)}, found {found}"
        adapter = _adapter(annotation, *metadata)
        # Before pydantic: 1 == True == 1.0, and a Literal takes them for one another.
        if isinstance(value, bool) and bool not in members:
            return self.report(path, message + _mend(value, adapter, members, texts_allowed, path))
        if isinstance(value, float) and float not in members:
            whole = [(int(value), f"; write {int(value)}")] if math.isfinite(value) and int in members else []
            return self.report(path, message + _first_taken(whole, adapter))
        key = next((part for part in reversed(path) if not part.isdigit()), "")  # a list's entry has only a number
        for text in texts_in(value):
            if problem := text_problem(key, text):
                return self.report(path, f"{plain(text)} {problem}")
        try:
            return adapter.validate_python(value)
        except ValidationError:
            return self.report(path, message + _mend(value, adapter, members, texts_allowed, path))


@cache
def _adapter(annotation: Any, *metadata: Any) -> TypeAdapter[Any]:
    return TypeAdapter(Annotated[annotation, *metadata] if metadata else annotation, config=_STRICT)


def _is_off(value: Any) -> bool:
    return value in (0, False) or str(value).lower() in _NOTHING


def _switch(value: Any, path: KeyPath) -> str:
    """The hint of which key turns off what somebody would turn off by a value."""
    switch = _SWITCHES.get(path) if _is_off(value) else None
    return f"; to turn it off, set {switch}" if switch else ""


def _number_in(parts: re.Match[str], *, whole: bool) -> int | float:
    """The number of a match of ``_NUMBER_AND_MORE``, rounded down to a whole one if need be."""
    digits = parts["thousands"].replace(",", "") if parts["thousands"] else parts["number"].replace(",", ".")
    number = Decimal(digits) * _UNITS.get(parts["unit"].lower(), 1)
    return int(number) if whole else float(number)


def _number_meant(text: str, members: list[Any], adapter: TypeAdapter[Any]) -> str:
    """The hint of which number a text was to be, of those that the key takes; empty if the text is none."""
    hints: list[tuple[Any, str]] = []
    number = read_scalar(text.strip(" \t'\"").replace("_", ""))
    if isinstance(number, int | float) and not isinstance(number, bool):
        hints.append((number, f"; write {number}, without quotes, spaces or underscores"))
    if float in members and _DECIMAL_COMMA.fullmatch(text):
        point = text.replace(",", ".")
        hints.append((float(point), f"; write {point}, with a point"))
    if parts := _NUMBER_AND_MORE.fullmatch(text.strip()):
        number = _number_in(parts, whole=float not in members)
        hints.append((number, f"; write a number alone, such as {number}"))
    return _first_taken(hints, adapter) or ("; write a number alone" if hints else "")


def _first_taken(hints: list[tuple[Any, str]], adapter: TypeAdapter[Any]) -> str:
    """The first hint whose value the key takes; empty if there is none."""
    for value, hint in hints:
        with suppress(ValidationError):
            adapter.validate_python(value)
            return hint
    return ""


def _mend(value: Any, adapter: TypeAdapter[Any], members: list[Any], words: list[Any], path: KeyPath) -> str:
    """The hint of what to write instead; empty if there is none."""
    if types.NoneType in members and _is_off(value):
        return "; to turn it off, write null"
    if switch := _switch(value, path):
        return switch
    if "none" in words and _is_off(value):
        return "; write none"
    if isinstance(value, str):
        near = meant(value, [word for word in words if isinstance(word, str)])
        if near:
            return f"; did you mean {near}?"
        if {int, float} & set(members) and (number := _number_meant(value, members, adapter)):
            return number
        lists = any(get_origin(option) is list for option in members)
        if lists and re.fullmatch(r"[\w.]+(\s*,\s*[\w.]+)+", value):
            return f"; write [{value}], in brackets"
        if bool in members and value.lower() in ("yes", "on", "y", "no", "off", "n"):
            return f"; write {'true' if value.lower() in ('yes', 'on', 'y') else 'false'}"
    if isinstance(value, float) and not math.isfinite(value):
        return "; it must be finite"
    if str in members and isinstance(value, int | float):
        return "; put it in quotes"
    return ""
