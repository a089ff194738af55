"""What someone meant who wrote a choice otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from basic_lite.choices import meant, meant_beside, mend_of_missing, require_place
from basic_lite.errors import UserError

DTYPES = ("auto", "float32", "bfloat16", "float16")


@pytest.mark.parametrize(
    ("word", "choices", "near"),
    [
        ("gpu", ("auto", "cpu", "cuda"), "cuda"),
        ("CUDA ", ("auto", "cpu", "cuda"), "cuda"),
        ("cpuu", ("auto", "cpu", "cuda"), "cpu"),
        ("bf16", DTYPES, "bfloat16"),
        ("fp16", DTYPES, "float16"),
        ("fp16", ("float32", "bfloat16"), None),
        ("xyz", DTYPES, None),
    ],
)
def test_meant(word: str, choices: tuple[str, ...], near: str | None) -> None:
    assert meant(word, choices) == near


def test_meant_beside(tmp_path: Path) -> None:
    (tmp_path / "Photos.csv").touch()
    (tmp_path / ".photos.csv").touch()
    (tmp_path / "photo").mkdir()
    assert meant_beside(tmp_path / "photo.csv") == f"did you mean {(tmp_path / 'Photos.csv').as_posix()}?"
    assert meant_beside(tmp_path / "photos", Path.is_dir) == f"did you mean {(tmp_path / 'photo').as_posix()}?"
    assert meant_beside(tmp_path / "questions.json") == meant_beside(tmp_path / "nowhere" / "photo.csv") == ""


def test_a_relative_path_from_another_folder_names_where_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "captions.csv").touch()
    for inside, above in (("one", ".."), ("one/two", "../..")):
        (tmp_path / inside / "photos_2").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / inside)
        said = mend_of_missing(Path("photos/captions.csv"))
        assert said == f"start the command in {above}, the folder that has it"
    assert mend_of_missing(tmp_path / "one" / "photos" / "captions.csv") == ""
    assert mend_of_missing(Path("photos"), Path.is_file) == ""
    assert mend_of_missing(Path("x" * 5000)) == mend_of_missing(Path("\0")) == ""


def test_a_pattern_that_the_shell_wrote_out_is_one_error(tmp_path: Path) -> None:
    """`basic-lite data photos/*` arrives as the names of all pictures."""
    names = [tmp_path / f"{number}.png" for number in range(50)]
    for name in names:
        name.touch()
    with pytest.raises(UserError) as caught:
        require_place(names[0], [str(name) for name in names[1:]])
    said = str(caught.value)
    assert "and 49 more files are named, as a shell does with *" in said
    assert f"name one: the folder that they are in ({tmp_path.as_posix()}), or one data file." in said
    require_place(names[0], ["seed=3", str(names[1])])


@pytest.mark.parametrize(
    ("there", "typed", "meant_name"),
    [
        (["bild_1", "bild_2", "bild_10", "bild_20"], "bild_0", "bild_1"),
        (["bild_00", "bild_01", "bild_10", "bild_20"], "bild_0", "bild_00"),
        (["cat.1", "cat.30", "cats"], "cat.29", "cat.30"),
        (["cat", "dog_20"], "cat0", "cat"),
        (["cat##"], "cat#1", "cat##"),
        (["bild_#"], "bild_1", "bild_#"),
    ],
)
def test_of_numbered_names_the_nearest_number_was_meant(
    tmp_path: Path, there: list[str], typed: str, meant_name: str
) -> None:
    """Letter by letter, 20 is as near to 0 as 00 is."""
    for name in there:
        (tmp_path / f"{name}.jpg").touch()
    assert meant_beside(tmp_path / f"{typed}.jpg") == f"did you mean {(tmp_path / meant_name).as_posix()}.jpg?"


def test_a_number_that_is_longer_than_any_name_is_near_to_none(tmp_path: Path) -> None:
    """Python refuses to read so many digits."""
    (tmp_path / "1").touch()
    assert meant_beside(tmp_path / ("1" * 5000)) == ""
