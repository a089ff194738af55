"""Chromium without a window, for pages. It may reach this machine alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
_AXE = Path(__file__).resolve().parents[2] / "node_modules" / "axe-core" / "axe.min.js"


def chromium() -> Any:
    """A driver that notes what the page says and asks for. The test is skipped where something is missing."""
    pytest.importorskip("selenium")
    programs = [shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")]
    if None in programs:
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for option in _OPTIONS:
        options.add_argument(option)
    options.binary_location = str(programs[0])
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(str(programs[1])))


def set_size(driver: Any, width: int, height: int) -> None:
    """The page's size in pixels."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def asked_for(driver: Any) -> list[str]:
    """The addresses that the page has asked for since this was called last, those in the page itself aside."""
    entries = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in entries if one["method"] == "Network.requestWillBeSent"]
    assert urls
    return [url for url in urls if not url.startswith(("data:", "blob:"))]


def axe() -> str:
    """The script of axe-core. The test is skipped where it isn't installed."""
    if not _AXE.is_file():
        pytest.skip("needs axe-core: npm install --no-save axe-core")
    return _AXE.read_text(encoding="utf-8")


def faults(driver: Any, script: str) -> list[str]:
    """The serious and critical faults that axe-core finds in the page."""
    driver.execute_script(script)
    found = driver.execute_async_script(
        "axe.run(document).then(arguments[0], error => arguments[0]({error: '' + error}))"
    )
    assert "violations" in found, found
    return [
        f"{one['id']}: {node['html'][:200]}: {node['failureSummary'][:300]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"][:3]
    ]
