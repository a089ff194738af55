"""What a bundle's manifest must say, and of which kind each entry is. Who reads one may rely on it."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from basic_lite.outside import parse_json
from basic_lite.recipe.schema import MOST

FORMAT = 1
Count = Annotated[int, Field(ge=0, le=MOST)]


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError("it leads out of the bundle")
    return name


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _File(_Entry):
    sha256: str


class _Data(_Entry):
    samples: int
    fingerprint: str | None = None
    eval_fingerprint: str | None = None


class _Start(_Entry):
    key: str
    bundle: str
    step: Count
    manifest_sha256: str


class _Target(_Entry):
    layer_weights: list[float]
    massive: list[list[int]] | None


class _Manifest(_Entry):
    basic_lite: str = ""
    stage: Literal[1, 2]
    step: Count
    total_steps: Count
    data: _Data
    machine: dict[str, str]
    processes: int = Field(1, ge=1)
    models: dict[Literal["base", "vision", "llm"], str | None]
    model_facts: dict[str, Any]
    model_files: dict[str, str] = {}
    files: dict[Annotated[str, AfterValidator(_inside)], _File]
    started_from: _Start | None = None
    target: _Target | None = None


def first_problem(error: ValidationError) -> str:
    """The first key that is wrong, and how."""
    found = error.errors()[0]
    return f"{'.'.join(map(str, found['loc']))}: {found['msg']}"


def read_manifest(data: bytes) -> dict[str, Any]:
    """A manifest's contents; of another ``FORMAT`` only as far as its format.

    Raises:
        ValueError: says what is wrong with it.
    """
    manifest = parse_json(data.decode())
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise ValueError("it says no format")
    if manifest["format"] == FORMAT:
        try:
            _Manifest.model_validate(manifest)
        except ValidationError as error:
            raise ValueError(first_problem(error)) from None
    return manifest
