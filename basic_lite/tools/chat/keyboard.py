"""A line from the keyboard."""

from contextlib import suppress

# With it, ``input`` lets a line be edited and earlier ones be called back. Not every system has it.
with suppress(ImportError):
    import readline

    # Python turns that off. A pasted text is one line then; else an empty line in it would end the conversation, and
    # the shell would run the rest.
    readline.parse_and_bind("set enable-bracketed-paste on")


def typed(prompt: str) -> str:
    """What is typed after a prompt, or pasted there, with its line breaks.

    Raises:
        EOFError: there is nothing more (Ctrl-D).
    """
    return input(prompt)
