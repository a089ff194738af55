"""What typer says of a wrong option, in the words of this program."""

import re
from typing import Any

from basic_lite.choices import meant

# Typer hands on what pydantic or click say; their words for numbers differ from release to release.
_WHOLE = re.compile(r"Input should be a valid integer.*|(?P<value>'.*') is not a valid int(?:eger)?(?: range)?\.?")
_NUMBER = re.compile(r"Input should be a valid number.*|(?P<value>'.*') is not a valid float(?: range)?\.?")
_BELOW = re.compile(r"Input should be greater than or equal to (?P<bound>\S+)")
_ABOVE = re.compile(r"Input should be less than or equal to (?P<bound>\S+)")
_COMMAND = re.compile(r"No such command '(?P<value>.*?)'\..*", re.DOTALL)
_CHOICE = re.compile(r"(?P<value>'.*') is not one of (?P<choices>'.*')\.?")


def reworded(error: Any) -> str:
    """The text of a typer exception, in plain words, with the choice that was meant."""
    text = str(error.format_message()).replace("Value error, ", "")
    if (match := _COMMAND.fullmatch(text)) and (context := getattr(error, "ctx", None)) is not None:
        near = meant(match["value"], [*context.command.commands, "--help"])
        return f"there is no command '{match['value']}'" + (f"; did you mean '{near}'?" if near else "")
    about = getattr(getattr(error, "param", None), "help", None)
    if text.startswith("Missing argument ") and about:
        return f"{text.rstrip('.')}: {about[:1].lower()}{about[1:]}"
    found = getattr(error, "message", "").replace("Value error, ", "")
    return text.replace(found, _plain(found, _value(error))) if found else text


def _value(error: Any) -> str:
    """What was given, where pydantic found the fault: its text doesn't say it."""
    cause = error.__cause__
    return repr(cause.errors()[0]["input"]) if hasattr(cause, "errors") else ""


def _plain(text: str, value: str) -> str:
    if match := _CHOICE.fullmatch(text):
        near = meant(match["value"].strip("'"), re.findall("'(.*?)'", match["choices"]))
        return text.rstrip(".") + (f"; did you mean {near}?" if near else "")
    for pattern, kind in ((_WHOLE, "whole number"), (_NUMBER, "number")):
        if match := pattern.fullmatch(text):
            return f"{match['value'] or value} is not a {kind}"
    for pattern, way in ((_BELOW, "small; the least is"), (_ABOVE, "large; the most is")):
        if match := pattern.fullmatch(text):
            return f"{value} is too {way} {match['bound']}"
    return text
