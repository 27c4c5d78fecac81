"""``python -m bwe``: the same as the command ``bwe``."""

from bwe.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
