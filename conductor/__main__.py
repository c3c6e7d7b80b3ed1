"""``python -m conductor``: the same as the ``conductor`` command."""

from .cli import main

if __name__ == "__main__":
    main()
