"""CSV and TSV: what spreadsheets write is read, what can't be meant is refused with its line."""

from __future__ import annotations

import csv
import io
import pickle
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from basic_lite.data import table_source
from basic_lite.data.problems import BadRecord
from basic_lite.data.records import Records
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.recipe.schema import SourceSection


def table(folder: Path, text: str | bytes, name: str = "captions.csv", **keys: Any) -> Records:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_records(SourceSection(path=name, **keys), root=folder)


def pairs(records: Records) -> list[tuple[str, str]]:
    return [(record.images[0].name, record.turns[-1].text) for record in records]


WANTED = [("a.png", "a cat, asleep"), ("b c.jpg", 'two\nlines of "ö"')]
FORMS: dict[str, str | bytes] = {
    "comma": 'image,caption\na.png,"a cat, asleep"\nb c.jpg,"two\nlines of ""ö"""\n',
    "excel, German": '\ufeffBild;Text\r\na.png;a cat, asleep\r\n"b c.jpg";"two\nlines of ""ö"""\r\n;\r\n\r\n',
    "tab": 'File Name\tCaption\na.png\ta cat, asleep\nb c.jpg\t"two\nlines of ""ö"""',
    "utf-16": 'image\tcaption\r\na.png\ta cat, asleep\r\nb c.jpg\t"two\nlines of ""ö"""\r\n'.encode("utf-16"),
    "no header": 'a.png,"a cat, asleep"\nb c.jpg,"two\nlines of ""ö"""\n',
    "written by hand": 'image, caption\na.png, "a cat, asleep"\nb c.jpg , "two\nlines of ""ö"""\n',
    "hint": 'sep=;\r\nimage;caption\r\na.png;a cat, asleep\r\nb c.jpg;"two\nlines of ""ö"""\r\n',
    "old Mac": 'image,caption\ra.png,"a cat, asleep"\rb c.jpg,"two\nlines of ""ö"""\r',
}


@pytest.mark.parametrize("form", FORMS)
def test_what_spreadsheets_write(tmp_path: Path, form: str) -> None:
    columns = {"image": "Bild"} if form == "excel, German" else {}
    records = table(tmp_path, FORMS[form], columns=columns)
    assert pairs(records) == WANTED
    again = pickle.loads(pickle.dumps(records))
    assert again[1] == records[1] and len(table(tmp_path, FORMS[form], limit=1, columns=columns)) == 1


def test_a_tsv_has_tabs_and_a_row_its_line(tmp_path: Path) -> None:
    text = "\nimage\tquestion\tanswer\n\na.png\twhat, now?\t1,5\n\t\t\nb.png\twho?\n\tno picture?\tyes\n"
    records = table(tmp_path, text, "x.tsv")
    assert [turn.text for turn in records[0].turns] == ["what, now?", "1,5"]
    assert [records.place(n) for n in range(3)] == ["x.tsv, line 4", "x.tsv, line 6", "x.tsv, line 7"]
    assert records[1].answer is None and records[2].images == ()
    assert records[0].place == "x.tsv, line 4"


def test_the_line_is_named_whatever_is_wrong(tmp_path: Path) -> None:
    rows = ["image,caption", "a.png,fine", '"b.png","two', 'lines"', "c.png,one, two", "d.png,", ",lonely"]
    records = table(tmp_path, "\n".join(rows))
    expected = ["line 5: it has 3 cells for 2 columns ('two' is too many); put a text that has a comma",
                "line 6: its 'caption' is empty", "line 7: it has a text, but neither a picture"]  # fmt: skip
    for index, words in zip((2, 3, 4), expected, strict=True):
        with pytest.raises(BadRecord) as caught:
            records[index]
        assert str(caught.value).startswith(f"captions.csv, {words}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bild,wort\na.png,x\n", r"none of its columns \(bild, wort\) .*columns.image.*columns.answer=wort"),
        ("a.png,x,y\n", "starts with a picture .*3 columns"),
        ("a.png\nb.png\n", "1 column, not picture and caption"),
        ("", "empty"),
        ("\n\n", "empty"),
        ("image,caption\n", "no record"),
        ("image,caption\na.png,ü\n".encode("latin-1"), "line 2: this isn't UTF-8.*CSV UTF-8"),
        ('image,caption\na.png,"x\nb.png,y\nc.png,z\n', "line 2: a double quote is opened"),
        (
            'image,caption\na.png,"x\nb.png,y\nc.png,He said "hi"\n',
            "line 2: a double quote is opened .* in line 4, where",
        ),
        ('"image" or so,caption\na.png,x\n', "its first line can't be read: a cell begins with a double quote"),
        ("image,caption\na.png," + "x" * 2_000_000, "line 2: a cell has more than 1,000,000 characters"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str | bytes, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_source, "_MOST_OF_CELL", 1_000_000)
    csv.field_size_limit(1_000_000)
    with pytest.raises(UserError, match=expected):
        table(tmp_path, text)


@pytest.mark.parametrize("line", ['a.png,"Stop" says the sign', r'a.png,"He said \"hi\""', '"a.png" or b.png,x'])
def test_a_quote_that_closes_before_the_cells_end_is_one_bad_row(tmp_path: Path, line: str) -> None:
    """Read leniently, the quotes would be lost from the text that is learned."""
    records = table(tmp_path, f'image,caption\n{line}\nb.png,"He said ""hi"""\n')
    with pytest.raises(
        BadRecord, match=r'^captions\.csv, line 2: a cell begins with a double quote.*; write "" for each'
    ):
        records[0]
    assert records[1].turns[1].text == 'He said "hi"'


@pytest.mark.parametrize("head", ["image,caption", '"image" , "caption" '])
def test_spaces_behind_a_quote_are_no_text(head: str, tmp_path: Path) -> None:
    records = table(
        tmp_path, f'{head}\n"a.png" , "He said ""so"" , wet" \nb.png,"A dog" \r\nc.png,"A cat"  \nd.png,the "A" ; B'
    )
    texts = ['He said "so" , wet', "A dog", "A cat", 'the "A" ; B']
    assert [record.turns[1].text for record in records] == texts
    assert records[0].images[0].name == "a.png"


def test_a_cell_may_hold_a_picture(tmp_path: Path) -> None:
    whole = "data:image/png;base64," + "A" * 300_000
    for limit in (131_072, 1 << 30):  # csv's own, and one that a program has raised
        csv.field_size_limit(limit)
        assert table(tmp_path, f'image,caption\n"{whole}",x\n')[0].images[0].blob.url == whole
    assert csv.field_size_limit() == 1 << 30


def test_columns_and_prompts(tmp_path: Path) -> None:
    text = "id,Bild,Wort,caption\n7,a.png,eins,one\n"
    record = table(tmp_path, text, columns={"image": "Bild", "answer": "Wort"}, prompt="?")[0]
    assert (record.id, record.turns[1].text, record.place) == ("7", "eins", "captions.csv, line 2 (id 7)")
    with pytest.raises(UserError, match=r"no column 'bild' \(nearest: 'Bild'\)"):
        table(tmp_path, text, columns={"image": "bild"})
    with pytest.raises(UserError, match=r"its column 'question' has the questions.*remove `prompt`"):
        table(tmp_path, "image,question,answer\na.png,q,a\n", prompt="?")


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from('",;\n\r\t ö'), max_size=8)


@pytest.mark.parametrize(
    "content, says",
    [
        ('{"image": "a.png", "caption": "a cat, asleep"}\n', r"it holds JSON .*; rename it to captions\.jsonl"),
        ('\ufeff\n[{"image": "a.png", "caption": "a cat"}]', r"it holds JSON .*; rename it to captions\.jsonl"),
        (
            '[\n  {\n    "image": "a.png",\n    "caption": "a cat"\n  }\n]\n',
            r"it holds JSON .*; rename it to captions\.jsonl",
        ),
        ("image,caption\na.png,a cat\n".encode("utf-16-le"), "UTF-16 without the mark that says so; save"),
        ("image,caption\na.png,a cat\n".encode("utf-16-be"), "UTF-16 without the mark that says so; save"),
        (b"PK\3\4" + bytes(range(256)), "an archive, as Excel's workbooks are; save"),
    ],
)
def test_what_is_no_table_is_told(tmp_path: Path, content: str | bytes, says: str) -> None:
    """JSON was said to have a wrong quote, a workbook to lack UTF-8 in its line 2, UTF-16 to have odd columns."""
    with pytest.raises(UserError, match=says):
        table(tmp_path, content)


def test_names_of_columns_that_are_swapped_are_told(tmp_path: Path) -> None:
    """Each text was said to be a picture that doesn't exist. Questions still were, and columns that the recipe maps."""
    rows = "a small cat,a.png\na dog,b.png\n"
    with pytest.raises(
        BadRecord,
        match=r"line 2: its 'image' is a text \('a small cat'\), and 'caption' names a picture \('a.png'\); sw",
    ):
        pairs(table(tmp_path, "image,caption\n" + rows))
    told = (
        r"line 2: its '\w+' is a text \('a small cat\?'\), and '\w+' names a picture \('a.png'\); swap the names of th"
    )
    asked = "a small cat?,a.png,yes\n"
    with pytest.raises(BadRecord, match=told):
        pairs(table(tmp_path, "image,question,answer\n" + asked))
    with pytest.raises(BadRecord, match=told):
        pairs(table(tmp_path, "q,i,a\n" + asked, columns={"image": "q", "question": "i", "answer": "a"}))
    assert pairs(table(tmp_path, "caption,image\n" + rows))[0] == ("a.png", "a small cat")
    mapped = table(tmp_path, "image,caption\n" + rows, columns={"image": "caption", "answer": "image"})
    assert pairs(mapped)[0] == ("a.png", "a small cat")
    for said in ("image,caption\nmy cat.png,b.png\n", "image,caption\n,b.png\n", "image,caption\n17,b.png\n"):
        assert len(table(tmp_path, said)) == 1
    assert pairs(table(tmp_path, "image,caption\nmy cat.png,b.png\n17,b.png\n"))[1] == ("17", "b.png")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5), ends=st.sampled_from(["\n", "\r\n"]),
       delimiter=st.sampled_from(",;\t"), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))  # fmt: skip
def test_cells_are_those_of_dict_reader(
    tmp_path: Path, rows: list[tuple[str, str]], ends: str, delimiter: str, encoding: str
) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=ends)
    writer.writerows([("image", "caption"), *rows, ("last.png", "last")])
    (tmp_path / "f.csv").write_bytes(out.getvalue().encode(encoding))
    [source] = load_records(SourceSection(path="f.csv"), root=tmp_path).sources
    got = [source.row(n) for n in range(len(source))]
    oracle = csv.DictReader(io.StringIO(out.getvalue(), newline=""), delimiter=delimiter, skipinitialspace=True)
    filled = [{k: (v or "").strip() or None for k, v in row.items()} for row in oracle]
    assert got == [row for row in filled if any(row.values())]


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"captions.csv: two columns are called 'caption'; rename one"):
        table(tmp_path, "image,caption, caption,,\na.png,one,two,,\n")


@pytest.mark.parametrize(
    ("text", "header"),
    [("a red ring,a.png\n", "caption,image"), ("7,a.png,a ring\n", "a name for each column, image for the pictures")],
)
def test_a_first_line_with_a_picture_is_no_header(tmp_path: Path, text: str, header: str) -> None:
    with pytest.raises(UserError) as caught:
        table(tmp_path, text)
    assert "no header, since its first line names a picture ('a.png'); write the names" in str(caught.value)
    assert str(caught.value).endswith(f"{header}.")
    if header == "caption,image":
        assert pairs(table(tmp_path, f"{header}\n{text}")) == [("a.png", "a red ring")]


def test_bars_between_columns_are_named_and_replaced(tmp_path: Path) -> None:
    """As in Flickr30k's results.csv, whose texts have commas and quotes in them."""
    with pytest.raises(UserError, match=r"separated by '\|'") as caught:
        table(tmp_path, 'image_name| comment_number| comment\na.png| 0| One, "a" | b .\n', "results.csv")
    words = shlex.split(str(caught.value).partition("python ")[2])
    subprocess.run([sys.executable, *words], cwd=tmp_path, check=True)
    section = SourceSection(path=words[-1], columns={"image": "image_name", "answer": "comment"})
    assert pairs(load_records(section, root=tmp_path)) == [("a.png", 'One, "a" | b .')]


@pytest.mark.parametrize("key", ["path", "folder", "parquet"])
def test_a_path_that_lost_its_backslashes_says_so_in_one_line(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError) as caught:
        load_records(SourceSection(**{key: "photos\new\table.csv"}), root=tmp_path)
    said = str(caught.value)
    assert said.isprintable() and r"'photos\new\table.csv'; it was probably written with backslashes in double" in said
    assert said.endswith("write / instead, or put the text in single quotes")


def test_numbers_behind_names_are_named_and_left_out(tmp_path: Path) -> None:
    """Flickr8k's token file: its first line was taken for names of columns, and lost if one followed the advice."""
    (tmp_path / "text").mkdir()
    said = "a number follows each picture's name \\('a.jpg#0'\\)"
    with pytest.raises(UserError, match=said) as caught:
        table(tmp_path, 'a.jpg#0\tA dog , "so" .\na.jpg#1\tA cat .\n', "text/token.tsv")
    words = shlex.split(str(caught.value).partition("python ")[2])
    subprocess.run([sys.executable, *words], cwd=tmp_path, check=True)
    assert words[-1] == "text/token_commas.csv"  # pictures are looked for around it
    read = load_records(SourceSection(path=words[-1]), root=tmp_path)
    assert pairs(read) == [("a.jpg", 'A dog , "so" .'), ("a.jpg", "A cat .")]


@pytest.mark.parametrize(
    ("first", "says"),
    [
        ("My captions,\n,\n", r"its first line is 'My captions,', and one that names the columns comes later"),
        ("# made by me\n", r"\('image;caption'\); remove the lines before that"),
    ],
)
def test_a_header_that_comes_later_is_told(tmp_path: Path, first: str, says: str) -> None:
    """The column was said to have a name that doesn't say which is the text."""
    with pytest.raises(UserError, match=says):
        table(tmp_path, first + "image,caption\na.png,a cat\n".replace(",", "," if "," in first else ";"))


def test_a_first_line_in_other_quotes_or_with_an_address_is_no_header(tmp_path: Path) -> None:
    """`none of its columns ('image', 'caption')`, which are the right names."""
    with pytest.raises(
        UserError, match=r"in quotes that a table doesn't know \('image'\), so they are taken as text; "
    ):
        table(tmp_path, "'image','caption'\n'a.png','a cat'\n")
    with pytest.raises(UserError, match=r"no header, since its first line names a picture \('https://a\.org/b\?c=1'\)"):
        table(tmp_path, "a bus\thttps://a.org/b?c=1\n", "a.tsv")
