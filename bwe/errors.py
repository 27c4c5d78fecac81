"""What can go wrong for a user: one sentence each, and the exit code of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar

OUT_OF_MEMORY = 5  # exit code; the others are those of the classes


class BweError(Exception):
    """Base of every error this package raises on purpose; ``str(exc)`` is the sentence shown to the user."""

    exit_code: ClassVar[int] = 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, also where PyTorch says so by a RuntimeError."""
    text = str(error)
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and ("not enough memory" in text or "alloc_cpu" in text))


class AudioError(BweError):
    """An input file or array that cannot be used: missing, damaged, not audio, non-finite, of the wrong shape."""

    exit_code: ClassVar[int] = 1


class ConfigError(BweError):
    """A setting that does not exist or has the wrong type or value."""

    exit_code: ClassVar[int] = 2


class ModelError(BweError):
    """A model that is unknown, damaged, refused, or does not fit its config."""

    exit_code: ClassVar[int] = 3


class OutputError(BweError):
    """An output that cannot be written: it exists already, the folder is missing, the disk is full."""

    exit_code: ClassVar[int] = 4


def nearest(name: str, options: Iterable[str]) -> str:
    """The option most like ``name`` (difflib ratio), or an empty string where there is none."""
    return next(iter(difflib.get_close_matches(str(name), list(options), n=1, cutoff=0.0)), "")
