"""Whether an installation is well: versions, processor, devices, formats, sound, space, and the shipped models."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
from dataclasses import dataclass
from typing import Any

import torch

import bwe
from bwe import hub
from bwe.errors import ModelError


@dataclass(frozen=True)
class Installation:
    """What `examine` found; ``str()`` of it is for the terminal, ``exit_code`` is 0, or 1 where ``problems`` has sentences."""

    versions: dict[str, str]
    optional: dict[str, str]
    cpu: dict[str, Any]
    devices: list[str]
    codecs: dict[str, Any]
    sound: str
    temporary: dict[str, Any]
    models: dict[str, str]
    problems: list[str]

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def exit_code(self) -> int:
        return 0 if self.ok else 1

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        cpu = self.cpu
        threads = f"{cpu['threads']} threads on {cpu['cores']} cores"
        lines = [
            ("versions", ", ".join(f"{name} {version}" for name, version in self.versions.items())),
            *(("optional" if not i else "", f"{name} {said}") for i, (name, said) in enumerate(self.optional.items())),
            ("CPU", ", ".join([cpu["name"], threads, *cpu["features"]])),
            ("devices", ", ".join(self.devices)),
            ("formats", ", ".join(self.codecs["libsndfile"])),
            ("", self.codecs["pyav"]),
            ("sound", self.sound),
            ("temporary", f"{self.temporary['folder'] or 'none'}, {self.temporary['free_bytes'] / 1e9:.1f} GB free"),
            *(("models" if not i else "", f"{name}: {said}") for i, (name, said) in enumerate(self.models.items())),
        ]
        lines += [("problem", sentence) for sentence in self.problems]
        return "\n".join([*(f"{name:<11}{text}" for name, text in lines), "ok" if self.ok else "not ok"])


_NEEDED = ("torch", "torchaudio", "numpy", "scipy", "soundfile", "einops", "safetensors")
_CPU_FLAGS = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bf16", "amx_bf16": "bf16 (AMX)", "amx_tile": "AMX", "bf16": "bf16",
    "asimd": "NEON",
}  # fmt: skip
_LEAST_FREE_BYTES = 300_000_000  # what a piped input may need in the temporary folder, and some more


def examine() -> Installation:
    """Look over the installation: versions, processor, devices, formats, sound, space, and every shipped model against its
    sha256."""
    import soundfile as sf

    problems: list[str] = []
    versions = {"python": platform.python_version(), "bwe": bwe.__version__}
    versions |= {name: _version(name) or "not installed" for name in _NEEDED}
    versions["libsndfile"] = sf.__libsndfile_version__
    models = {}
    for name in hub.list_models():
        try:
            meta = hub.read(name)[1]
            models[name] = f"ok (sha256 {meta['sha256'][:12]})"
        except ModelError as error:
            models[name] = "damaged"
            problems.append(f"{error}")
    if not models:
        problems.append("no models in this installation; install bwe again, with its pretrained folder")
    folder, free = _temporary()
    if folder is None:
        problems.append("no folder for temporary files can be written; set TMPDIR to one that can")
    elif free < _LEAST_FREE_BYTES:
        problems.append(f"{folder}: {free / 1e6:.0f} MB free for temporary files; make room or set TMPDIR to another folder")
    return Installation(
        versions=versions,
        optional=_optional(),
        cpu=_cpu(),
        devices=_devices(),
        codecs={"libsndfile": sorted(sf.available_formats()), "pyav": _pyav()},
        sound=_sound(),
        temporary={"folder": folder, "free_bytes": free},
        models=models,
        problems=problems,
    )


def _temporary() -> tuple[str | None, int]:
    """The folder for temporary files and the bytes free in it; None where there is none."""
    try:
        folder = tempfile.gettempdir()
        return folder, shutil.disk_usage(folder).free
    except OSError:
        return None, 0


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _optional() -> dict[str, str]:
    """Packages of the extras: version, or how to get it."""
    try:
        requirements = importlib.metadata.requires("bwe") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, str] = {}
    for requirement in requirements:
        match = re.match(r"([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"]", requirement)
        if match and match[2] not in ("dev", "all") and match[1] not in found:
            found[match[1]] = _version(match[1]) or f"not installed: pip install 'bwe[{match[2]}]'"
    return dict(sorted(found.items()))


def _cpu() -> dict[str, Any]:
    name: str = platform.processor() or platform.machine()
    flags = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
        entries: dict[str, str] = dict(re.findall(r"^([^\t:]+)\t*: (.*)$", stream.read(), re.M))
        name = entries.get("model name", name)
        flags = entries.get("flags", entries.get("Features", ""))
    features = list(dict.fromkeys(text for flag, text in _CPU_FLAGS.items() if flag in flags.split()))
    if not features:
        features = [torch.backends.cpu.get_cpu_capability()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"name": name, "cores": cores, "threads": torch.get_num_threads(), "features": features}


def _devices() -> list[str]:
    found = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return ["cpu", *found, *(["mps"] if torch.backends.mps.is_available() else [])]


def _pyav() -> str:
    try:
        import av
    except ImportError:
        return "no PyAV for m4a, aac, wma, webm and video: pip install 'bwe[formats]'"
    except OSError as error:
        return f"PyAV cannot be loaded ({error})"
    return f"PyAV {av.__version__} for m4a, aac, wma, webm and video"


def _sound() -> str:
    try:
        sounddevice: Any = importlib.import_module("sounddevice")
    except ImportError:
        return "no audio devices: the package sounddevice is not installed (pip install sounddevice)"
    except OSError as error:
        return f"no audio devices: sounddevice cannot be loaded ({error})"
    try:
        names = [device["name"] for device in sounddevice.query_devices()]
    except sounddevice.PortAudioError as error:
        return f"no audio devices: {error}"
    return ", ".join(names) or "no audio devices: the system has none"
