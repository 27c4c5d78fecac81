"""torchaudio, with or without its compiled extension.

The wheel on PyPI is linked against CUDA libraries; beside a CPU build of torch its extension cannot be loaded and
``import torchaudio`` raises OSError (beside a torch of another CUDA version: RuntimeError). Everything this package
needs of torchaudio (resampling, mel filterbanks, spectrograms) is pure Python, so in that case the extension module
is replaced by a stand-in that says "not available", which torchaudio itself knows how to handle.

Use ``from bwe._torchaudio import torchaudio``; other libraries that import torchaudio work afterwards as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

try:
    import torchaudio
except (OSError, RuntimeError):
    for _name in [n for n in sys.modules if n == "torchaudio" or n.startswith("torchaudio.")]:
        del sys.modules[_name]

    def _no_align(function: Callable[..., Any]) -> Callable[..., Any]:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(f"torchaudio's {function.__name__} needs its compiled extension, which cannot load here")

        return fail

    _stub = ModuleType("torchaudio._extension")
    _stub.__dict__.update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        _check_cuda_version=lambda: None,
        fail_if_no_align=_no_align,
    )
    sys.modules[_stub.__name__] = _stub
    import torchaudio

__all__ = ["torchaudio"]
