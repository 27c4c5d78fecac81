"""bwe: audio bandwidth extension in the waveform domain.

>>> import bwe
>>> model = bwe.load("speech-48k")
>>> y = model(x, sr=16_000)                  # numpy or torch, (T,) (C,T) (B,C,T); same kind out
>>> bwe.extend("talk.wav", "talk48.wav")

Names are imported on first use (PEP 562), so ``import bwe`` costs nothing and changes nothing in the process.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "load": "infer",
    "extend": "infer",
    "Extender": "infer",
    "Report": "infer",
    "list_models": "hub",
    "register": "hub",
    "compare": "evaluate",
    "evaluate": "evaluate",
    "BweError": "errors",
    "AudioError": "errors",
    "ConfigError": "errors",
    "ModelError": "errors",
    "OutputError": "errors",
}

__all__ = [
    "AudioError",
    "BweError",
    "ConfigError",
    "Extender",
    "ModelError",
    "OutputError",
    "Report",
    "__version__",
    "compare",
    "evaluate",
    "extend",
    "list_models",
    "load",
    "register",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'bwe' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"bwe.{home}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps ``bwe.evaluate`` the function, also after the submodule of that name has been imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in _HOME:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


if TYPE_CHECKING:
    from bwe.errors import AudioError, BweError, ConfigError, ModelError, OutputError
    from bwe.evaluate import compare, evaluate
    from bwe.hub import list_models, register
    from bwe.infer import Extender, Report, extend, load
