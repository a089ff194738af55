"""Questions from the keyboard or a pipe, answers to stdout."""

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from basic_lite.console import note
from basic_lite.errors import UserError
from basic_lite.tools.chat.arguments import picture
from basic_lite.tools.chat.dialogue import Dialogue
from basic_lite.tools.chat.reply import Reply
from basic_lite.tools.chat.speaker import Manner, Speaker

# With it, ``input`` lets a line be edited and earlier ones be called back. Not every system has it.
with contextlib.suppress(ImportError):
    import readline  # noqa: F401

HELP = """\
/image PATH   show a picture with the next question (several paths: several pictures)
/clear        start again, without history and pictures
/help         this list
/quit         stop; so do an empty line and Ctrl-D
Ctrl-C stops an answer that is on its way."""


def converse(speaker: Speaker, dialogue: Dialogue, manner: Manner, question: str | None) -> None:
    """Answer ``question``, or else questions from standard input until an empty line or its end.

    Raises:
        UserError: where no one sits at the keyboard; else it is shown and the conversation goes on.
    """
    note(speaker.note)
    if question is not None:
        ask(speaker, dialogue, manner, question)
        return
    attended = sys.stdin.isatty()
    if attended:
        note("/image PATH adds a picture, /help lists what else there is, an empty line stops")
    while line := next_line(dialogue, attended):
        try:
            if line == "/quit":
                return
            if line.startswith("/"):
                obey(line, dialogue)
            else:
                ask(speaker, dialogue, manner, line)
        except UserError as error:
            if not attended:
                raise
            note(f"error: {error}")


def next_line(dialogue: Dialogue, attended: bool) -> str:
    """The next line without the space around it; empty at the end."""
    if not attended:
        return sys.stdin.readline().strip()
    count = len(dialogue.pictures)
    shown = f"[{count} picture{'s' * (count != 1)}] " if count else ""
    try:
        if sys.stdout.isatty():
            return input(f"{shown}> ").strip()
        # ``input`` would write its prompt among the answers.
        print(f"{shown}> ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip()
    except EOFError:
        note("\n")  # the cursor still stands behind the prompt
        return ""
    except KeyboardInterrupt:
        note("\n")
        raise


def obey(line: str, dialogue: Dialogue) -> None:
    """Do what a line that starts with a slash says.

    Raises:
        UserError: there is no such command, or a picture can't be read.
    """
    command, _, rest = line.partition(" ")
    if command == "/image":
        for path in _paths(rest.strip()):
            dialogue.pictures.append(picture(path))
            note(f"{path} goes with the next question")
    elif command == "/clear":
        dialogue.clear()
        note("started again")
    elif command == "/help":
        note(HELP)
    else:
        raise UserError(f"there is no command {command}; /help lists them (a question can't start with a slash)")


def _paths(text: str) -> list[str]:
    """One path with or without quotes, or several; terminals quote what is dropped on them."""
    if not text:
        raise UserError("/image needs the path of a picture: /image photo.jpg")
    if os.path.exists(os.path.expanduser(text)):
        return [text]
    try:
        return shlex.split(text)
    except ValueError:  # a quote without its partner
        return [text]


def ask(speaker: Speaker, dialogue: Dialogue, manner: Manner, text: str) -> None:
    """Print the answer as it comes, and keep both. A question stopped before the first word is taken back."""
    asked = dialogue.asked(text)
    reply = speaker.reply(asked, manner)
    pieces: list[str] = []
    with _stopped_by_interrupt(reply):
        for piece in reply:
            print(piece, end="", flush=True)
            pieces.append(piece)
    print(flush=True)
    if reply.stopped and not pieces:
        note("stopped before its first word; the question is taken back")
        return
    if reply.cut:
        note(f"(cut at {manner.max_new_tokens} tokens; --max-new-tokens allows more)")
    dialogue.keep(asked, "".join(pieces))


@contextlib.contextmanager
def _stopped_by_interrupt(reply: Reply) -> Iterator[None]:
    """For a while Ctrl-C ends the answer, not the program."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        reply.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
