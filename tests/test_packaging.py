"""What a user installs: names, packages, shipped files, and the two commands README promises."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_no_init_where_a_package_would_shadow_another() -> None:
    """A top-level package `kernels` would shadow the one of that name that transformers imports."""
    for folder in ("kernels", "recipes", "tests", "bench"):
        assert not (ROOT / folder / "__init__.py").exists(), folder
    probe = "import importlib.util as u; s = u.find_spec('kernels'); print(s.origin if s and s.origin else None)"
    found = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert str(ROOT) not in found.stdout


def test_every_folder_with_code_is_a_package_the_wheel_will_hold() -> None:
    include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    for root, package in ((ROOT, "basic_lite"), (ROOT / "kernels", "basic_lite_kernels")):
        for file in (root / package).rglob("*.py"):
            folder = file.parent
            name = ".".join(folder.relative_to(root).parts)
            assert (folder / "__init__.py").is_file(), f"{folder} has code and no __init__.py"
            assert any(fnmatch.fnmatch(name, pattern) for pattern in include)


def test_readme_opens_with_the_two_commands() -> None:
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40]
    assert "pip install -e . && basic-lite demo" in first_screen
    assert 'pip install -e ".[test]" && pytest' in first_screen


def test_ci_takes_its_command_from_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    pattern = re.search(r"grep -m1 -E '(.+)' README\.md", script)
    assert pattern is not None
    matches = re.findall(pattern.group(1), (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert matches == ['pip install -e ".[test]" && pytest']
    assert 'eval "$readme_command"' in script


def test_relative_links_in_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


def test_readme_commands_and_recipes_exist(capsys: pytest.CaptureFixture[str]) -> None:
    from basic_lite.cli import main

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"`?recipes/(\w+)\.yaml|`(\w+)\.yaml`", text)):
        assert (ROOT / "recipes" / f"{name[0] or name[1]}.yaml").is_file(), name
    for command in set(re.findall(r"^basic-lite ([\w-]+)", text, re.M)):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert not stopped.value.code, command


def test_wheel_holds_code_recipes_and_licence(tmp_path: Path) -> None:
    """Built from a copy with the build tools at hand, so nothing is fetched, nothing left in the tree."""
    tree = tmp_path / "tree"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", "runs", ".*", "tests", "bench")
    shutil.copytree(ROOT, tree, ignore=ignore)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('wheels'))"
    result = subprocess.run([sys.executable, "-c", build], cwd=tree, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (wheel,) = (tree / "wheels").glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    for package, root in (("basic_lite", ROOT), ("basic_lite_kernels", ROOT / "kernels")):
        source = {str(p.relative_to(root).as_posix()) for p in (root / package).rglob("*.py")}
        assert source <= set(names)
    assets = ROOT / "basic_lite" / "demo" / "assets"
    assert {str(p.relative_to(ROOT).as_posix()) for p in assets.rglob("*") if p.is_file()} <= set(names)
    texts = [*(ROOT / "basic_lite" / "training" / "text_probe").glob("*.json")]
    assert len(texts) == 2 and {p.relative_to(ROOT).as_posix() for p in texts} <= set(names)
    recipes = {p.name for p in (ROOT / "recipes").glob("*.yaml")}
    assert {Path(name).name for name in names if "share/basic-lite/recipes/" in name} == recipes
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "compil" in name], "compiling for cards that aren't here is the tests'"
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.startswith("basic_lite-")} == {"basic_lite", "basic_lite_kernels"}
