"""Questions from the keyboard or a pipe, answers to stdout."""

import contextlib
import glob
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

from basic_lite.console import note
from basic_lite.errors import UserError
from basic_lite.printable import printable
from basic_lite.sizes import number_of
from basic_lite.tools.chat.arguments import is_picture, picture
from basic_lite.tools.chat.dialogue import Dialogue, pictures_of
from basic_lite.tools.chat.lines import Lines
from basic_lite.tools.chat.speaker import Manner, Speaker
from basic_lite.tools.chat.words import PICTURE_ENDING, missing_pictures, require_there

if TYPE_CHECKING:
    from basic_lite.tools.chat.reply import Reply

# With it, ``input`` lets a line be edited and earlier ones be called back. Not every system has it.
with contextlib.suppress(ImportError):
    import readline

    # Python turns that off. A pasted text is one line then; else an empty line in it would end the conversation, and
    # the shell would run the rest.
    readline.parse_and_bind("set enable-bracketed-paste on")

HELP = """\
/image PATH   show a picture with the next question (several paths, or dir/*.png: several pictures)
/clear        start again, without history and pictures
/help         this list
/quit         stop; so do quit, exit, an empty line and Ctrl-D
Ctrl-C stops an answer that is on its way."""


def converse(speaker: Speaker, dialogue: Dialogue, manner: Manner, question: str | None) -> None:
    """Answer ``question``, or else questions from standard input until an empty line or its end.

    Raises:
        UserError: a question can't be answered, and no one sits at the keyboard. All else is said, and the conversation
            goes on.
    """
    note(speaker.note)
    if question is not None:
        ask(speaker, dialogue, manner, question)
        return
    attended = sys.stdin.isatty()
    if attended:
        note("/image PATH adds a picture, /help lists what else there is, an empty line stops")
    asked, rest = False, ""
    while line := rest or next_line(dialogue, attended):
        asked, rest = True, ""
        if line.startswith("/"):  # a command ends with its line; pasted lines behind it are read next
            line, _, rest = (part.strip() for part in line.partition("\n"))
        if line.lower() in ("/quit", "quit", "exit"):
            return
        try:
            _refuse_pictures(line)
            if line.startswith("/"):
                obey(line, dialogue)
                continue
        except UserError as error:
            note(f"error: {error}")
            rest = ""
            continue
        try:
            ask(speaker, dialogue, manner, line)
        except UserError as error:
            if not attended:
                raise
            note(f"error: {error}")
    if not asked and not attended:
        raise UserError("there is no question: standard input is empty; write it after the pictures, in quotes")


def next_line(dialogue: Dialogue, attended: bool) -> str:
    """The next line without the space around it; empty at the end."""
    if not attended:
        return sys.stdin.readline().strip()
    count = len(pictures_of(dialogue.asked("")))
    shown = f"[{number_of(count, 'picture')}] " if count else ""
    try:
        if sys.stdout.isatty():
            return input(f"{shown}> ").strip()  # with the line breaks of a pasted text
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
        paths = _paths(rest.strip())
        dialogue.pictures += [picture(path) for path in paths]
        for path in paths:
            note(f"{path} goes with the next question")
    elif command == "/clear":
        dialogue.clear()
        note("started again")
    elif command == "/help":
        note(HELP)
    elif PICTURE_ENDING.search(command):
        raise UserError(f"{command} is a picture: /image {command} adds it, and then comes the question")
    else:
        raise UserError(f"there is no command {command}; /help lists them (a question can't start with a slash)")


def _paths(text: str) -> list[str]:
    """One path with or without quotes, or several, or patterns such as ``dir/*.png``.

    Raises:
        UserError: there is no path, or nothing has a pattern's form.
    """
    if not text:
        raise UserError("/image needs the path of a picture: /image photo.jpg")
    words = split_paths(text)
    if len(words) > 1 and not os.path.exists(words[0]) and not any(map(PICTURE_ENDING.search, words[:-1])):
        require_there(text)  # one name with spaces in it
    return [path for word in words for path in _matches(word)]


def split_paths(line: str) -> list[str]:
    """The line as one path if it is one, else its words; terminals quote what is dropped on them."""
    if os.path.exists(os.path.expanduser(line)):
        return [line]
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    if sys.platform == "win32":
        lexer.escape = ""  # a backslash separates folders there
    try:
        return list(lexer)
    except ValueError:  # a quote without its partner
        return [line]


def _matches(word: str) -> list[str]:
    if os.path.exists(os.path.expanduser(word)) or not glob.has_magic(word):
        return [word]
    found = sorted(glob.glob(os.path.expanduser(word)))
    if not found:
        raise UserError(f"there is no picture {word}; correct the path or the pattern")
    return found


def _refuse_pictures(line: str) -> None:
    """Refuse a line that is nothing but pictures, there or not: someone dropped them here.

    Raises:
        UserError: it is.
    """
    if line.partition(" ")[0] == "/image":
        return
    words = split_paths(line)
    if missing := missing_pictures(words):
        raise UserError(f"there is no picture {missing[0]}; correct its path, and write /image before it")
    if all(os.path.isfile(os.path.expanduser(word)) and is_picture(word) for word in words):
        raise UserError(f"that is a picture; /image {line} adds it to the next question")


def ask(speaker: Speaker, dialogue: Dialogue, manner: Manner, text: str) -> None:
    """Print the answer as it comes, and keep both. A question stopped before the first word is taken back."""
    asked = dialogue.asked(text)
    if len(asked) == 1 and not asked[0].pictures:
        note("(no picture given)")
    reply = speaker.reply(asked, manner)
    pieces: list[str] = []
    lines = Lines(shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
    with _stopped_by_interrupt(reply):
        for piece in reply:
            print(lines.take(printable(piece)), end="", flush=True)
            pieces.append(piece)
    print(flush=True)
    if reply.stopped and not pieces:
        note("stopped before its first word; the question is taken back")
        return
    if not "".join(pieces).strip():
        note("(nothing: the answer is empty)")
    if reply.cut:
        note(f"(cut: {reply.why_cut(manner.max_new_tokens, '--max-new-tokens')})")
    dialogue.keep(asked, "".join(pieces))


@contextlib.contextmanager
def _stopped_by_interrupt(reply: "Reply") -> Iterator[None]:
    """For a while Ctrl-C ends the answer, not the program."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        reply.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
