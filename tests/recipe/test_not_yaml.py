"""What a recipe that is no YAML is told: the line that has to be changed, in plain words."""

import re

import pytest
from ruamel.yaml import YAML

from basic_lite.recipe import shipped_recipe
from basic_lite.recipe.yaml import read_document

RECIPE = shipped_recipe("7b_8gb").read_text(encoding="utf-8").splitlines()


def told(lines: list[str]) -> str:
    (problem,) = read_document("\n".join(lines) + "\n", "my.yaml").problems
    return str(problem)


def moved(key: str, by: int) -> tuple[int, str]:
    """The line of a key of the recipe (from 1), and what is said when it is indented so much more."""
    at = next(number for number, line in enumerate(RECIPE) if line.strip().startswith(f"{key}:"))
    columns = len(RECIPE[at]) - len(RECIPE[at].lstrip()) + by
    return at + 1, told([*RECIPE[:at], " " * columns + RECIPE[at].lstrip(), *RECIPE[at + 1 :]])


@pytest.mark.parametrize(("by", "columns"), [(1, "3 spaces"), (2, "4 spaces"), (-1, "1 space"), (-2, "0 spaces")])
@pytest.mark.parametrize("key", ["rank", "llm", "scheduler"])
def test_a_wrong_indent_is_named_with_its_line_and_its_neighbours(key: str, by: int, columns: str) -> None:
    line, said = moved(key, by)
    assert f":{line}:" in said
    assert f"line {line} is indented by {columns}, the lines beside it by 2; indent the keys of one section" in said


@pytest.mark.parametrize(
    ("key", "by", "beside"),
    [
        ("path", -2, "line {after} by 4"),
        ("vision", -2, "line {after} by 2"),
        ("enabled", 1, "line {after} by 2"),
        ("workers", 1, "line {before} by 2, line {later} by 0"),
        ("stage", 1, "the lines beside it by 0"),
        ("quantization", 1, "line {earlier} by 2"),
        ("training", 1, "line {earlier} by 2"),
    ],
)
def test_so_are_the_first_and_the_last_of_a_section(key: str, by: int, beside: str) -> None:
    line, said = moved(key, by)
    places = {"before": line - 1, "after": line + 1, "later": line + 2, "earlier": line - 2}
    assert f"line {line} is indented by " in said
    assert beside.format(**places) in said


def test_lines_that_were_moved_together_are_named_together() -> None:
    at = next(number for number, line in enumerate(RECIPE) if line.strip().startswith("alpha:"))
    lines = [*RECIPE[:at], *(f"  {line}" for line in RECIPE[at : at + 2]), *RECIPE[at + 2 :]]
    assert f"lines {at + 1} to {at + 2} are indented by 4 spaces, the lines beside them by 2" in told(lines)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("t:\n\ta: 1\n\tb: 2\n", ":2:2: not valid YAML: line 2 is indented by a tab"),
        ("t:\n  - a: 1\n   b: 2\n", "line 3 is indented by 3 spaces, line 2 by 4"),
        ("t:\n  a:1\n  b: 2\n", ":2:3: not valid YAML: line 2 has no space after `a:`"),
        ("t:\n  a: b\n  c\n  d: 1\n", "line 3 has no colon after `c`"),
        ("t\n  a: 1\n", "line 1 has no colon after `t`"),
        (
            "prompt: Say: what is it\nb: 1\n",
            "the value of `prompt` has a colon in it on line 1; put the value in quotes",
        ),
        ("a: [1\nb: 2\n", "the bracket `[` that opens on line 1 isn't closed"),
        ("a: 'x\nb: 2\n", "the quote that opens on line 1 isn't closed"),
        ("a: 'x\n  word\n", "the quote that opens on line 1 isn't closed"),
        ("t:\n  a: b c\n    word\n   d: 1\n  e: 1\n", "line 4 is indented by 3 spaces"),
        ("a: 1\nb 2\nc: 3\n", "line 2 has no colon after `b`; add one"),
        ("t:\n  epochs 3\n  seed: 2\n", "line 2 has no colon after `epochs`; add one"),
        ("a:\n  - path: x\n    image_dir photos\n", "line 3 has no colon after `image_dir`; add one"),
        ("a: [1]]\n", "nothing that `]` could belong to is open"),
        ("a: @x\n", "no value may begin with '@'; put it in quotes"),
        ("a: *.jpg\n", "put a text that begins with * in quotes"),
        ("a: 'b' c\n", "text follows a value that is complete"),
        ("- a\nb: 1\n", "this doesn't fit to the lines before it"),
        ("a: 1\n---\nb: 2\n", "remove this line"),
        ('a: "\\q"\n', "it has a backslash in double quotes"),
        ("%YAML 3.0\n---\na: 1\n", "YAML's own words are: "),
    ],
)
def test_other_slips_are_said_in_plain_words(text: str, says: str) -> None:
    said = told(text.splitlines())
    assert says in said
    assert not re.search(r"<\w+|mapping values|expected", said)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "a:\n  b: |\n    one\n   two\n  c: 1\n",
            "line 4 is indented by 3 spaces, line 3 by 4; indent all lines of a text",
        ),
        (
            "a:\n  b: |\n    one\n  and two\n  c: 1\n",
            "line 4 is indented by 2 spaces, line 3 by 4; indent all lines of a",
        ),
        ("a:\n  - b: >-\n  one two\n    c: 1\n", "line 3 is indented by 2 spaces, line 2 by 4; indent all lines of a"),
        (
            "a:\n  b: >\n    x: 1\n   y:2\n    z\n  c: 1\n",
            "line 4 is indented by 3 spaces, line 3 by 4; indent all lines",
        ),
        ("b: |\n  # one\n two\nc: 1\n", "line 3 is indented by 1 space, line 2 by 2; indent all lines of a text alike"),
        # What stands behind a text isn't of it.
        (
            "a:\n  b: |\n    x:1\n  # y\n  c: 1\n   d: 1\n  e: 1\n",
            "line 6 is indented by 3 spaces, the lines beside it by 2",
        ),
    ],
)
def test_a_block_text_is_told_of_its_own_lines(text: str, says: str) -> None:
    assert says in told(text.splitlines())


def test_a_key_in_the_wrong_section_is_told_of_its_indent() -> None:
    from basic_lite.recipe.check import Checker
    from basic_lite.recipe.schema import Recipe

    document = read_document("micro_batch: 8\ndata:\n  seed: 1\n", "my.yaml")
    Checker(document).section(Recipe, document.values, ())
    said = "\n".join(map(str, document.problems))
    assert "did you mean `training.micro_batch`? Then indent it as the keys of `training:`" in said


@pytest.mark.parametrize("keys", [800, 2000])
def test_a_long_text_is_read_again_a_few_times(keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds in all. Without a limit it would be read up to thirty times."""
    read: list[int] = []
    compose = YAML.compose
    monkeypatch.setattr(YAML, "compose", lambda self, text: read.append(len(text)) or compose(self, text))
    section = ["training:", *(f"  key_{number}: {number}" for number in range(keys))]
    assert "this doesn't fit to the lines before it" in told([*section, "  - other", "  last: 4"])
    assert 100_000 < sum(read[1:]) <= 200_000, "the first is the recipe's own reading"


@pytest.mark.parametrize("path", [r"C:\Users\me\x.json", r"D:\data\x.json", r"photos\x1.csv"])
def test_backslashes_in_double_quotes_are_named(path: str) -> None:
    said = told(["data:", "  train:", f'    path: "{path}"'])
    assert said.startswith("my.yaml:3:") and "a backslash in double quotes" in said
    assert said.endswith("write / instead, or put the text in single quotes")
    (path_,) = read_document(f"path: '{path}'", "my.yaml").values.values()  # type: ignore[union-attr]
    assert path_ == path


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (["a:", "  b: 1", "\u00a0 c: 2", "  d: 3"], 3),
        (["a:", "\u00a0 b: 1", "e: 4"], 2),
        (["a:", "  b: 1", " \u00a0c: 2", "e: 4"], 3),
    ],
)
def test_a_blank_that_is_no_space_is_named(lines: list[str], line: int) -> None:
    said = told(lines)
    assert said.startswith(f"my.yaml:{line}:") and f"line {line} is indented by a no-break space (U+00A0)" in said
    assert said.endswith("indent by plain spaces alone")
