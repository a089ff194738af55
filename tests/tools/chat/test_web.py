"""What the page's buttons do, without a browser."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from basic_lite.cli import _status
from basic_lite.errors import UserError
from basic_lite.tools.chat.command import chat
from basic_lite.tools.chat.of_folder import FolderSpeaker
from basic_lite.tools.chat.of_run import RunSpeaker
from basic_lite.tools.chat.speaker import Manner
from tests.support.chat import Parrot, replying_threads


def asked(page: Any, session: Any, text: str, *files: Path) -> list[tuple[Any, Any]]:
    return list(page.answer({"text": text, "files": [str(file) for file in files]}, session))


@pytest.fixture
def page(run_speaker: RunSpeaker) -> Any:
    pytest.importorskip("gradio", reason="gradio (the extra `web`) is not installed")
    from basic_lite.tools.chat.web import Page

    return Page(run_speaker, Manner(max_new_tokens=8))


@pytest.fixture
def session(page: Any) -> Any:
    from basic_lite.tools.chat.web import Session

    return Session()


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r'; install it: pip install -e "\.\[web\]"'):
        chat("nowhere", [], web=True)
    with pytest.raises(UserError, match="on its page"):
        chat("nowhere", ["photo.jpg"], web=True)


def test_an_answer_grows_in_the_conversation(page: Any, session: Any, images: Path) -> None:
    steps = asked(page, session, "what colour is it ?", images / "1.png")
    picture, question = {"path": str(images / "1.png")}, "what colour is it ?"
    said = [[entry["content"] for entry in talk] for talk, _ in steps]
    begun = [picture, question]
    assert said == [begun, [*begun, "it"], [*begun, "it is"], [*begun, "it is blue"], [*begun, "it is blue"]]
    assert [entry["role"] for entry in steps[-1][0]] == ["user", "user", "assistant"]
    first, last = steps[0][1], steps[-1][1]
    assert (first.submit_btn, first.stop_btn, first.value["text"]) == (False, True, "")
    assert (last.submit_btn, last.stop_btn) == (True, False)
    asked(page, session, "what is it ?")
    assert [len(m.pictures) for m in session.dialogue.messages] == [1, 0, 0, 0]


def test_what_is_refused_stands_in_the_box_again(page: Any, session: Any, images: Path) -> None:
    for text, file in (("what" + " what" * 600, images / "0.png"), ("<image> <image>", images / "0.png")):
        talk, box = asked(page, session, text, file)[-1]
        assert talk == [] and box.value["text"] == text and box.submit_btn is True
    assert asked(page, session, "  ", images / "0.png")[-1][0] == []
    asked(page, session, "what colour is it ?")
    assert [len(m.pictures) for m in session.dialogue.messages] == [0, 0]


def test_a_broken_picture_is_named_and_taken_out(page: Any, session: Any, images: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes((images / "0.png").read_bytes()[:40])
    with pytest.warns(UserWarning, match="picture") as warned:
        talk, box = asked(page, session, "what ?", images / "1.png", broken)[-1]
    (said,) = (str(one.message) for one in warned)
    assert said.startswith("broken.png isn&#x27;t a picture that can be read, so it was taken out: image ")
    assert said.endswith("; fetch it again, or take another picture.") and str(tmp_path) not in said
    assert talk == [] and box.value["text"] == "what ?"
    assert [Path(file["path"]).name for file in box.value["files"]] == ["1.png"]


def test_a_bug_leaves_the_page_usable(page: Any, session: Any) -> None:
    page.speaker = Parrot("word")
    page.speaker.ids = [None]  # no token
    steps = page.answer({"text": "what ?", "files": []}, session)
    assert next(steps)[1].submit_btn is False
    talk, box = next(steps)
    assert talk == [] and box.submit_btn is True and box.value["text"] == "what ?"
    with pytest.raises(RuntimeError):
        next(steps)


def test_what_a_model_writes_is_text_and_no_html(page: Any, session: Any) -> None:
    """The conversation's component puts it into the page as it is: a picture in it would be fetched from its server."""
    page.manner = Manner()
    page.speaker = Parrot('<img src="http://example.com/x.png"> a < b &amp; c')
    (question, answer) = list(page.answer({"text": "is <b>x</b> it?", "files": []}, session))[-1][0]
    assert question["content"] == "is &lt;b&gt;x&lt;/b&gt; it?"
    assert answer["content"] == '&lt;img src="http://example.com/x.png"&gt; a &lt; b &amp;amp; c'
    assert session.dialogue.messages[-1].text == '<img src="http://example.com/x.png"> a < b &amp; c'


def test_stop_and_clear(page: Any, session: Any) -> None:
    page.stop(session)  # nothing to stop yet
    page.speaker = Parrot("word " * 100, waits_at=40)
    steps = page.answer({"text": "what ?", "files": []}, session)
    next(steps), next(steps)
    page.stop(session)
    list(steps)
    assert session.reply.stopped
    kept = session.dialogue.messages[-1].text
    assert kept and ("word " * 100).startswith(kept) and len(kept.split()) <= 41
    assert page.clear(session)[0] == [] and session.dialogue.messages == []


def test_a_conversation_cleared_in_an_answer_stays_clear(page: Any, session: Any, images: Path) -> None:
    steps = page.answer({"text": "what colour is it ?", "files": [str(images / "1.png")]}, session)
    next(steps), next(steps)
    page.clear(session)
    assert list(steps)[-1][0] == [] and session.dialogue.messages == []


def test_a_page_that_is_left_ends_its_answer(page: Any, session: Any) -> None:
    page.speaker = Parrot("word " * 100, waits_at=40)
    steps = page.answer({"text": "what ?", "files": []}, session)
    next(steps), next(steps)
    steps.close()
    assert replying_threads() == []


def test_the_look_inside_and_why_there_is_none(
    page: Any, session: Any, folder_speaker: FolderSpeaker, images: Path
) -> None:
    from basic_lite.tools.chat.web import NO_ANSWER_YET, Page

    assert NO_ANSWER_YET in page.inside(session)
    asked(page, session, "what colour is it ?", images / "1.png")
    assert page.inside(session).count('data-tip="') == 5 * 4  # attention, v, two layers, v̂; two by two patches
    theirs = Page(folder_speaker, Manner(max_new_tokens=8))
    asked(theirs, session, "what colour is it ?", images / "1.png")
    assert "opened by transformers alone" in theirs.inside(session)


def test_the_page_is_private(page: Any) -> None:
    from basic_lite.tools.chat.web import launch

    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    blocks, address = launch(page, None, browser=False)
    try:
        assert address.startswith("http://127.0.0.1:") and blocks.share_url is None
        assert not blocks.analytics_enabled and not blocks.allowed_paths and blocks.theme._stylesheets == []
        port = int(address.rstrip("/").rpartition(":")[2])
        with pytest.raises(UserError, match=f"port {port} is in use; choose another --port, or leave it out"):
            launch(page, port, browser=False)
    finally:
        blocks.close()


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal's Ctrl-C is POSIX's SIGINT")
def test_control_c_ends_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio", reason="gradio (the extra `web`) is not installed")
    from basic_lite.tools.chat import command, web

    launch = web.launch

    def launched(*given: Any) -> Any:
        page = launch(*given)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        return page

    monkeypatch.setattr(web, "launch", launched)
    monkeypatch.setattr(command, "chat", lambda *_, **__: web.serve(Parrot(), Manner(), port=None, browser=False))
    # Where tests run in the background, Python finds Ctrl-C ignored and leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert _status(["chat", str(tmp_path), "--web"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"the page is at http://127.0.0.1:\d+/ \(Ctrl-C stops\)\nstopped\n", err)
