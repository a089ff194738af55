"""The page in a real browser: Chromium without a window, which may reach this machine alone."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from basic_lite.tools.chat.of_run import RunSpeaker
from basic_lite.tools.chat.speaker import Manner, Speaker
from tests.support.browser import asked_for, chromium, set_size
from tests.support.chat import Parrot

pytestmark = pytest.mark.web
WIDE, NARROW = (1280, 900), (400, 850)


class Browser:
    """A window on the page."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def all(self, css: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", css))

    def one(self, css: str) -> Any:
        return wait(lambda: self.all(css), css)[0]

    def said(self) -> list[str]:
        """The answers, as they stand on the page."""
        # In one go: while an answer streams, its element is replaced again and again.
        script = "return [...document.querySelectorAll('#talk .bot.message')].map(one => one.innerText.trim())"
        return list(self.driver.execute_script(script))

    def ask(self, text: str, *pictures: Path) -> None:
        if pictures:
            chosen = self.one("#question input[type=file]")
            # Else chromedriver adds to the files of the last question.
            self.driver.execute_script("arguments[0].value = ''", chosen)
            chosen.send_keys("\n".join(str(picture) for picture in pictures))
            wait(lambda: len(self.all("#question .thumbnail-item")) == len(pictures), "thumbnails")
        self.one("#question textarea").send_keys(text + "\n")

    def asked_elsewhere(self) -> list[str]:
        """Addresses of other machines that the page asked for."""
        return [url for url in asked_for(self.driver) if not url.startswith("http://127.0.0.1:")]

    def picture(self) -> Image.Image:
        return Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")


def wait(found: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.05)
    raise AssertionError(f"no {what} within {seconds} s")


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Browser]]:
    """Serve a speaker and open its page in a window of a size."""
    pytest.importorskip("gradio")
    from basic_lite.tools.chat.web import Page, launch

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    closing: list[Callable[[], Any]] = []

    def opened(speaker: Speaker, size: tuple[int, int]) -> Browser:
        blocks, address = launch(Page(speaker, Manner()), None, browser=False)
        closing.append(blocks.close)
        driver = chromium()
        closing.append(driver.quit)
        set_size(driver, *size)
        driver.get(address)
        return Browser(driver)

    yield opened
    for close in reversed(closing):
        close()


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_pictures_conversation_and_a_look_inside(
    opened: Callable[..., Browser], run_speaker: RunSpeaker, images: Path, size: tuple[int, int]
) -> None:
    browser = opened(run_speaker, size)
    browser.ask("what colour is it ?", images / "1.png")
    wait(lambda: browser.said() == ["it is blue"], "answer")
    browser.ask("what is it ?", images / "0.png", images / "2.png")
    wait(lambda: len(browser.said()) == 2, "second answer")
    assert len(browser.all("#talk .user.message img")) == 3
    browser.driver.execute_script("arguments[0].click()", browser.one("#look button"))
    # Three pictures, five panels, two by two patches; at first those of the first answer are still there.
    wait(lambda: len(browser.all(".patches > b")) == 3 * 5 * 4, "patches of the second answer")
    cells = browser.all("details[open] .patches > b")
    assert len(cells) == 5 * 4  # the newest picture alone is unfolded
    assert all(cell.get_attribute("data-tip") for cell in cells)
    browser.driver.execute_script("arguments[0].focus()", cells[-1])
    tip = "return getComputedStyle(arguments[0], '::after').content"
    assert browser.driver.execute_script(tip, cells[-1]) == json.dumps(cells[-1].get_attribute("data-tip"))
    width = browser.driver.execute_script("return document.documentElement.scrollWidth")
    assert width <= size[0]
    shown = browser.picture()
    assert len(shown.getcolors(2**24) or []) > 500
    browser.one("#fresh").click()
    wait(lambda: browser.said() == [] and not browser.all(".patches"), "new conversation")
    assert browser.asked_elsewhere() == []


def test_words_stream_and_stop(opened: Callable[..., Browser], tmp_path: Path) -> None:
    pictures = '![](http://example.com/x.png) <img src="http://example.com/y.png"> <b>bold</b>'
    parrot = Parrot(f"{pictures} " + "word " * 2000, delay=0.004)
    browser = opened(parrot, WIDE)
    browser.ask("go on")
    wait(lambda: browser.said() and "word word" in browser.said()[0], "words")
    # While an answer streams, the button is replaced now and then, so it is found and clicked in one go.
    script = "const one = document.querySelector('#question button.stop-button'); one?.click(); return !!one"
    wait(lambda: browser.driver.execute_script(script), "the button that stops it")
    wait(lambda: browser.all("#question button.submit-button"), "end")
    (kept,) = browser.said()
    time.sleep(0.5)
    assert browser.said() == [kept] and len(kept.split()) < 1000
    assert kept.startswith(f"{pictures} word") and browser.asked_elsewhere() == []  # text, no pictures from elsewhere
    broken = tmp_path / "fake.png"
    broken.write_text("no picture")
    browser.ask("what ?", broken)
    warning = browser.one(".toast-body")
    wait(lambda: "fake.png isn't a picture that can be read" in warning.text, "warning")
    assert str(tmp_path) not in warning.text
    wait(lambda: not browser.all("#question .thumbnail-item"), "box without the picture")
    assert browser.one("#question textarea").get_attribute("value") == "what ?"
    button = browser.one("#fresh").rect
    assert warning.rect["y"] >= button["y"] + button["height"]
    wait(lambda: not browser.all(".toast-body"), "end of the warning", seconds=15)
    browser.one("#question textarea").clear()
    browser.ask("refuse")
    wait(lambda: "too long" in browser.driver.page_source, "warning")
    assert browser.one("#question textarea").get_attribute("value") == "refuse"
    assert browser.asked_elsewhere() == []
