"""``basic-lite chat``: a conversation with a trained model, in the terminal or on a page.

command.py    what the command does, top to bottom
words.py      which words are pictures and which is the question, by names alone
arguments.py  the same, with a look into the files
dialogue.py   the conversation so far, and the pictures of the next question
reply.py      an answer on its way, piece by piece; it can be stopped
speaker.py    what can be asked: a model of ours (of_run.py) or any that transformers opens (of_folder.py)
terminal.py   questions from the keyboard or a pipe; lines.py breaks lines of answers between words
web.py        the page; inside.py measures what it shows of a run, tools/maps/panels.py draws it
"""
