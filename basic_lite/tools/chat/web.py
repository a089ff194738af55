"""The page of ``basic-lite chat --web``: pictures, conversation, and for a run of ours a look inside the answer."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Any

from basic_lite.console import note
from basic_lite.data.images import ImageRef
from basic_lite.data.problems import BadImage
from basic_lite.errors import UserError
from basic_lite.tools.chat.arguments import mend_of, picture
from basic_lite.tools.chat.dialogue import Dialogue, Message
from basic_lite.tools.chat.inside import look_inside
from basic_lite.tools.chat.of_run import RunSpeaker
from basic_lite.tools.chat.reply import Reply
from basic_lite.tools.chat.speaker import Manner, Speaker
from basic_lite.tools.maps.panels import panels

# Before gradio is imported, which reads it then: nothing is reported to anyone.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio as gr

# The button that is hidden would upload the picture to a server. Warnings stand below the button of a new conversation.
CSS = """
#talk .icon-button-wrapper:has(> button[title="Share"]) { display: none; }
#top { align-items: center; }
#about { overflow-wrap: anywhere; }
.toast-wrap { top: 5rem !important; }
#talk .message-content .md { unicode-bidi: plaintext; }
"""
NOT_OURS = (
    "Token map and attention are shown for runs and bundles of basic-lite. They need the LLM's decoder layers and the "
    "recipe that says which of them make v̂; this model was opened by transformers alone."
)
NO_ANSWER_YET = (
    "Ask about a picture first. Then this shows where the answer looked, and which words the picture became."
)


@dataclass
class Session:
    """One visitor's conversation."""

    dialogue: Dialogue = field(default_factory=Dialogue)
    reply: Reply | None = None


class Page:
    """What the page's buttons do; each method is an event."""

    def __init__(self, speaker: Speaker, manner: Manner) -> None:
        self.speaker, self.manner = speaker, manner

    def answer(self, given: dict[str, Any], session: Session) -> Iterator[tuple[Any, Any]]:
        """Conversation and text box, again and again while the answer grows.

        Args:
            given: ``text`` and ``files``, paths of what was uploaded.
        """
        text, dialogue = given["text"].strip(), session.dialogue
        if not text:
            gr.Warning("Write a question; pictures alone ask nothing.")
            yield shown(dialogue.messages), gr.skip()
            return
        dialogue.pictures, refused = readable(given["files"])
        if refused:
            gr.Warning(escape(" ".join(refused)))
            yield shown(dialogue.messages), box({"text": text, "files": [_path(image) for image in dialogue.pictures]})
            return
        try:
            asked = dialogue.asked(text)
            yield shown(asked), box(answering=True)
            reply = session.reply = self.speaker.reply(asked, self.manner)
            said = ""
            for piece in reply:
                said += piece
                yield shown([*asked, Message("assistant", said)]), gr.skip()
        except UserError as error:
            gr.Warning(escape(str(error)))
            yield shown(session.dialogue.messages), box(given)
            return
        except Exception:  # a bug: gradio shows it, and the page stays usable
            yield shown(session.dialogue.messages), box(given)
            raise
        # Where it was cleared meanwhile, the session has a new dialogue, and this one is forgotten.
        if said or not reply.stopped:
            dialogue.keep(asked, said)
        if reply.cut:
            why = reply.why_cut(self.manner.max_new_tokens, "--max-new-tokens")
            gr.Info(f"The answer was cut: {why}.")
        yield shown(session.dialogue.messages), box()

    def stop(self, session: Session) -> None:
        """End the answer that is on its way."""
        if session.reply is not None:
            session.reply.stop()

    def clear(self, session: Session) -> tuple[Any, Any, str]:
        """Start again: conversation, text box, look inside."""
        self.stop(session)
        session.dialogue = Dialogue()
        return [], box({"text": "", "files": []}), self.inside(session)

    def inside(self, session: Session) -> str:
        """HTML of the look inside the last answer, or why there is none."""
        if not isinstance(self.speaker, RunSpeaker):
            return f"<p>{escape(NOT_OURS)}</p>"
        messages = session.dialogue.messages
        if not any(message.pictures for message in messages):
            return f"<p>{escape(NO_ANSWER_YET)}</p>"
        try:
            return panels(look_inside(self.speaker, messages))
        except UserError as error:
            return f"<p>{escape(str(error))}</p>"

    def build(self) -> gr.Blocks:
        """The page itself."""
        with gr.Blocks(title="basic-lite", analytics_enabled=False) as blocks:
            session = gr.State(Session())
            with gr.Row(elem_id="top"):
                about = [f"<strong>{escape(self.speaker.name)}</strong>", *escape(self.speaker.note).splitlines()]
                gr.HTML("<br>".join(about), scale=1, min_width=220, elem_id="about")
                fresh = gr.Button("New conversation", size="sm", scale=0, min_width=160, elem_id="fresh")
            # Not as markdown, nor as HTML (``shown``): what a model writes must not fetch pictures from anywhere.
            talk = gr.Chatbot(
                show_label=False,
                render_markdown=False,
                feedback_options=None,
                buttons=[],
                allow_file_downloads=False,
                placeholder="Add pictures and ask.",
                height="60vh",
                elem_id="talk",
            )
            question = gr.MultimodalTextbox(
                show_label=False,
                sources=["upload"],
                file_types=["image"],
                file_count="multiple",
                placeholder="Ask; drop or paste pictures here",
                autofocus=True,
                elem_id="question",
            )
            with gr.Accordion("Inside the last answer", open=False, elem_id="look"):
                look = gr.HTML(self.inside(Session()))
            self._connect(session, talk, question, fresh, look)
        return blocks

    def _connect(self, session: Any, talk: Any, question: Any, fresh: Any, look: Any) -> None:
        """Say which event calls what."""
        hidden = {"show_progress": "hidden", "api_visibility": "private"}
        # One answer at a time: all visitors share the model.
        one_at_a_time = {"concurrency_id": "model", "concurrency_limit": 1, **hidden}
        answered = question.submit(self.answer, [question, session], [talk, question], **one_at_a_time)
        answered.then(self.inside, session, look, **one_at_a_time)
        question.stop(self.stop, session, queue=False, **hidden)
        for start_again in (fresh.click, talk.clear):
            start_again(self.clear, session, [talk, question, look], queue=False, **hidden)


def readable(paths: list[str]) -> tuple[list[ImageRef], list[str]]:
    """The pictures among uploaded files, and what to say of each other file."""
    pictures, refused = [], []
    for path in paths:
        try:
            pictures.append(picture(path))
        except UserError as error:  # its text names gradio's own folder, which tells the visitor nothing
            name, why = os.path.basename(path), error.__cause__
            told = f": {why.what}; {mend_of(why)}" if isinstance(why, BadImage) else "; add another"
            refused.append(f"{name} isn't a picture that can be read, so it was taken out{told}.")
    return pictures, refused


def box(value: dict[str, Any] | None = None, *, answering: bool = False) -> Any:
    """The text box while an answer grows: empty, with a stop button; else ready, with ``value`` or as it is."""
    if answering:
        return gr.MultimodalTextbox(value={"text": "", "files": []}, submit_btn=False, stop_btn=True)
    ready: dict[str, Any] = {} if value is None else {"value": value}
    return gr.MultimodalTextbox(**ready, submit_btn=True, stop_btn=False)


def shown(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as gradio's chatbot takes them, pictures before their question.

    It puts a text into the page as HTML, whatever it is told of markdown, so texts are escaped.
    """
    entries: list[dict[str, Any]] = []
    for message in messages:
        entries += [{"role": message.role, "content": {"path": _path(image)}} for image in message.pictures]
        entries.append({"role": message.role, "content": escape(message.text, quote=False)})
    return entries


def _path(image: ImageRef) -> str:
    return os.path.join(image.folder, image.name)


def serve(speaker: Speaker, manner: Manner, *, port: int | None, browser: bool) -> None:
    """Open the page on this machine alone, until Ctrl-C.

    Raises:
        UserError: the port is taken.
    """
    note(speaker.note)
    blocks, address = launch(Page(speaker, manner), port, browser)
    note(f"the page is at {address} (Ctrl-C stops)")
    try:
        # gradio's own ``block_thread`` swallows Ctrl-C.
        while blocks.is_running:
            time.sleep(0.1)
    finally:
        blocks.close(verbose=False)


def launch(page: Page, port: int | None, browser: bool) -> tuple[gr.Blocks, str]:
    """Start the page's server in a thread; returns it and its address.

    Raises:
        UserError: the port is taken.
    """
    blocks = page.build()
    try:
        _, address, _ = blocks.launch(
            server_name="127.0.0.1",
            server_port=port,
            inbrowser=browser,
            share=False,
            ssr_mode=False,
            mcp_server=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            # Fonts of the system: gradio's own theme asks a server for its.
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=CSS,
        )
    except OSError as error:
        if port is None:
            raise UserError(f"the page can't be opened: {error}; choose a port with --port") from error
        reason = "is in use" if port >= 1024 else "is in use, or only the administrator may open it"
        raise UserError(f"port {port} {reason}; choose another --port, or leave it out") from error
    return blocks, address
