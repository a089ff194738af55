"""The commands of ``basic-lite``: each a few lines that call the code that does the work."""
