"""Bundles that were changed by hand, put together, or cut: refused before a weight is used, and the file named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from basic_lite.errors import UserError
from basic_lite.training.bundle import load_trained
from basic_lite.training.bundle_files import look_at_bundle, open_bundle
from basic_lite.training.files import sha256, write_json
from tests.support.bundles import write_random_bundle
from tests.support.runs import tiny_recipe

MANIFEST, RECIPE, PROJECTOR = "manifest.json", "recipe.json", "projector.safetensors"
ADAPTER = "adapter/adapter_model.safetensors"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    return write_random_bundle(folder / "final", tiny_recipe(folder))


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "final"))


def edit(path: Path, change: Callable[[Json], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def sign(bundle: Path) -> None:
    """Give the manifest the hashes of the files as they are now."""

    def rehash(manifest: Json) -> None:
        for name in manifest["files"]:
            manifest["files"][name] = {"sha256": sha256(bundle / name), "bytes": 0}

    edit(bundle / MANIFEST, rehash)


def refused(bundle: Path, open_it: Callable[[Path], Any] = open_bundle) -> str:
    with pytest.raises(UserError) as caught:
        open_it(bundle)
    assert len(str(caught.value)) <= 2000
    return str(caught.value)


@pytest.mark.parametrize("value", [None, [], "x", {}, -1, 1e308, float("nan"), True, "missing"], ids=str)
@pytest.mark.parametrize("key", ["step", "stage", "total_steps", "models", "model_facts", "files", "data", "format"])
def test_an_entry_of_another_kind(bundle: Path, key: str, value: Any) -> None:
    edit(bundle / MANIFEST, lambda m: m.pop(key) if value == "missing" else m.update({key: value}))
    if (key, value) in (("model_facts", {}), ("models", {}), ("format", True), ("stage", True)):
        return  # nothing to go by; `True` is 1
    said = refused(bundle, look_at_bundle)
    assert MANIFEST in said or "bundle format" in said


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"step": ' + b"9" * 5000 + b"}", b"\xff\xfe\0", b"", b"[1]", b"null", b'{"a":' * 10_000]
)
def test_a_manifest_that_is_none(bundle: Path, text: bytes) -> None:
    (bundle / MANIFEST).write_bytes(text)
    assert "manifest.json can't be read" in refused(bundle)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a\0b", "a\\..\\b", "", "adapter/../../x", "\ud800"])
def test_a_listed_file_that_leads_out(bundle: Path, name: str) -> None:
    edit(bundle / MANIFEST, lambda m: m["files"].update({name: {"sha256": "0", "bytes": 1}}))
    said = refused(bundle)
    assert "leads out of the bundle" in said or "is missing" in said


@pytest.mark.parametrize("entry", [None, {}, [], {"sha256": 5}, "0"])
def test_a_listed_file_without_a_hash(bundle: Path, entry: Any) -> None:
    edit(bundle / MANIFEST, lambda m: m["files"].update({PROJECTOR: entry}))
    assert "manifest.json can't be read" in refused(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(newer_key=1),
        lambda r: r.pop("data"),
        lambda r: r["model"].update(llm=4),
        lambda r: r["model"].update(llm="a\0"),
        lambda r: r["model"].update(llm="x" * 300),
        lambda r: r["lora"].update(rank=10**7),
        lambda r: r["data"].update(train=None),
    ],
)
def test_a_recipe_of_another_version(bundle: Path, change: Callable[[Json], Any]) -> None:
    edit(bundle / RECIPE, change)
    sign(bundle)
    assert "recipe.json has other keys than this version" in refused(bundle)


@pytest.mark.parametrize(
    "change",
    [lambda r: r.update(model={}), lambda r: r["model"].update(llm=None), lambda r: r["model"].update(base="a/b")],
)
def test_a_recipe_without_its_models(bundle: Path, change: Callable[[Json], Any]) -> None:
    edit(bundle / RECIPE, change)
    sign(bundle)
    assert "recipe.json names no model, or too many" in refused(bundle)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "", '"x"', '{"name": ' + "9" * 5000 + "}"])
def test_a_recipe_that_is_none(bundle: Path, text: str) -> None:
    (bundle / RECIPE).write_text(text)
    sign(bundle)
    assert "recipe.json has other keys than this version" in refused(bundle)


def test_an_adapter_that_the_manifest_or_the_recipe_leaves_out(bundle: Path) -> None:
    """Without this a LoRA that nobody trained would answer."""
    edit(bundle / RECIPE, lambda r: r["lora"].update(enabled=False))
    sign(bundle)
    assert f"has {ADAPTER}, and lora.enabled is false" in refused(bundle)
    edit(bundle / RECIPE, lambda r: r["lora"].update(enabled=True))
    edit(bundle / MANIFEST, lambda m: [m["files"].pop(name) for name in list(m["files"]) if "adapter" in name])
    sign(bundle)
    assert f"lists no {ADAPTER}, and lora.enabled is true" in refused(bundle)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("file", [PROJECTOR, ADAPTER])
def test_a_weight_that_is_not_finite(bundle: Path, file: str, number: float) -> None:
    state = load_file(bundle / file)
    next(iter(state.values())).view(-1)[-1] = number
    save_file(state, bundle / file)
    sign(bundle)
    said = refused(bundle, lambda place: load_trained(place, torch.device("cpu")))
    assert file in said and "aren't finite" in said


@pytest.mark.parametrize("file", [PROJECTOR, ADAPTER])
def test_weights_of_another_type(bundle: Path, file: str) -> None:
    save_file({name: one.to(torch.int32) for name, one in load_file(bundle / file).items()}, bundle / file)
    sign(bundle)
    assert "doesn't fit this model" in refused(bundle, lambda place: load_trained(place, torch.device("cpu")))


@pytest.mark.parametrize("data", [b"", b"junk", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0[[[[[[[[", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_of_weights_that_is_none(bundle: Path, data: bytes) -> None:
    (bundle / PROJECTOR).write_bytes(data)
    sign(bundle)
    assert PROJECTOR.partition(".")[0] in refused(bundle, lambda place: load_trained(place, torch.device("cpu")))


@pytest.mark.parametrize("place", ["x" * 300, "a\0b", "\ud800", "/dev/zero", ""])
def test_a_place_where_no_bundle_can_be(place: str) -> None:
    assert "holds no bundle" in (said := refused(Path(place))) or "there is no folder" in said


def test_names_that_are_not_utf8_are_kept_in_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"dropped": ["caf\udce9.png", "naïve"]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"dropped": ["caf\udce9.png", "naïve"]} and "naïve" in text
