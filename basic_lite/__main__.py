"""``python -m basic_lite``: the same as the command ``basic-lite``."""

from basic_lite.cli import main

if __name__ == "__main__":
    main()
