"""Models on disk: checkpoint folders, the closed registry of architectures, and configs as checked dataclasses.

A checkpoint folder holds ``config.json`` (format, arch, config, sample_rate, version, commit, sha256),
``model.safetensors`` (weight norm folded) and ``README.md`` (the card: data, licence, training, metrics, limits).
Nothing in it can run code: JSON and safetensors only, the architecture from a closed registry, the weights checked
against their sha256 at every load. Nothing here opens a network connection.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import nn

import bwe
from bwe import baselines, generators
from bwe.errors import BweError, ConfigError, ModelError, OutputError, nearest

FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
MAX_CONFIG_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 2 << 30

_META_TYPES = {
    "format": int, "arch": str, "config": dict, "sample_rate": int, "version": str, "commit": str, "sha256": str,
}  # fmt: skip

D = TypeVar("D")
M = TypeVar("M", bound=type[nn.Module])

_REGISTRY: dict[str, type[nn.Module]] = {}


def from_dict(cls: type[D], values: Mapping[str, Any], where: str, prefix: str = "") -> D:
    """Build the (nested) dataclass ``cls`` from plain values, as read from JSON or given on a command line.

    Every value is checked against the field's type: int, float (an int will do), bool, str, Path, Literal,
    ``X | None``, tuples, lists, dicts and nested dataclasses.

    Keys are told with ``prefix`` before them.

    Raises ConfigError, beginning with ``where``: an unknown key (the nearest one is named), a missing key,
    a wrong type (the key is named), or whatever ``__post_init__`` of the dataclass refuses.
    """
    return typing.cast(D, _build(cls, values, where, prefix))


def _build(cls: type, values: Any, where: str, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: {prefix.rstrip('.') or 'config'} must be a mapping, not {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in values:
        if key not in fields:
            hint = nearest(prefix + str(key), [prefix + name for name in fields])
            raise ConfigError(f"{where}: unknown key {prefix + str(key)!r}" + (f"; did you mean {hint!r}?" if hint else ""))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{where}: key {prefix + name!r} is missing")
    hints = typing.get_type_hints(cls)
    built = {key: _convert(value, hints[key], where, prefix + key) for key, value in values.items()}
    try:
        return cls(**built)
    except BweError:
        raise
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ConfigError(f"{where}: {prefix}{error}") from None


def _convert(value: Any, hint: Any, where: str, key: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for option in args:
            try:
                return _convert(value, option, where, key)
            except ConfigError as error:
                nested, last = dataclasses.is_dataclass(option) and isinstance(value, Mapping), error
                if nested:  # a mapping was meant to be this dataclass: its own message says more than the union's
                    raise last from None
    elif origin is typing.Literal:
        if any(type(value) is type(option) and value == option for option in args):
            return value
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else _build(hint, value, where, key + ".")
    elif origin is tuple and isinstance(value, list | tuple):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(v, args[0], where, f"{key}[{i}]") for i, v in enumerate(value))
        if len(args) == len(value):
            return tuple(_convert(v, a, where, f"{key}[{i}]") for i, (v, a) in enumerate(zip(value, args, strict=True)))
    elif origin is list and isinstance(value, list | tuple):
        return [_convert(v, args[0], where, f"{key}[{i}]") for i, v in enumerate(value)]
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return {_convert(k, args[0], where, key): _convert(v, args[1], where, f"{key}.{k}") for k, v in value.items()}
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif hint is Path and isinstance(value, str | Path):
        return Path(value)
    elif isinstance(hint, type) and hint not in (int, float) and isinstance(value, hint):
        return value
    wanted = hint.__name__ if isinstance(hint, type) and origin is None else str(hint).replace("typing.", "")
    raise ConfigError(f"{where}: {key} must be {wanted}, not {value!r}")


def register(arch: str) -> Callable[[M], M]:
    """Class decorator: make a generator class loadable under the name ``arch``.

    The class is built as ``cls(config)``; its ``Config`` (a frozen dataclass) is the attribute of that name or the
    annotated type of that argument. Raises ConfigError where the name is taken by another class or no Config is found.
    """

    def decorate(cls: M) -> M:
        taken = _REGISTRY.get(arch)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(f"register: the name {arch!r} is taken by {taken.__module__}.{taken.__qualname__}")
        _config_class(cls)
        _REGISTRY[arch] = cls
        return cls

    return decorate


def _config_class(cls: type[nn.Module]) -> type:
    config: Any = getattr(cls, "Config", None)
    if config is None:
        hints = typing.get_type_hints(cls.__init__)
        config = next((hint for name, hint in hints.items() if name == "config"), None)
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise ConfigError(f"register: {cls.__qualname__} has no Config dataclass (class attribute or type of `config`)")
    return config


def config_class(arch: str, where: str) -> Any:
    """The Config dataclass of a registered architecture. Raises ConfigError, beginning with ``where``, where there is none."""
    if arch not in _REGISTRY:
        known = ", ".join(_REGISTRY)
        raise ConfigError(f"{where}: unknown arch {arch!r}; did you mean {nearest(arch, _REGISTRY)!r}? ({known})")
    return _config_class(_REGISTRY[arch])


def build(arch: str, config: Any) -> nn.Module:
    """A new network of a registered architecture, with random weights. Raises ConfigError: ``config`` is of another one."""
    if not isinstance(config, config_class(arch, "arch")):
        raise ConfigError(f"arch={arch}: its generator has another config than {type(config).__qualname__}")
    return _REGISTRY[arch](config)


def weightless(name: str) -> nn.Module | None:
    """The baseline that has nothing to learn by the name of its architecture, "sinc" or "sbr", at 48 kHz or, as in "sbr-16k",
    at another sample rate; None for other names."""
    match = re.fullmatch(r"(sinc|sbr)(?:-(8|16|24|32|44|48)k)?", name)
    if match is None:
        return None
    rate = 44_100 if match[2] == "44" else 1000 * int(match[2] or 48)
    return build(match[1], config_class(match[1], name)(sample_rate=rate)).eval()


def _arch_of(generator: nn.Module) -> str:
    for arch, cls in _REGISTRY.items():
        if type(generator) is cls:
            return arch
    raise ConfigError(f"{type(generator).__qualname__} is not registered; decorate the class with @bwe.register(name)")


def _roots() -> list[Path]:
    """Where shipped models live: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    roots = [package / "pretrained"]
    if (package.parent / "setup.py").is_file():
        roots.append(package.parent / "pretrained")
    return roots


def _shipped() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in _roots():
        if root.is_dir():
            for folder in sorted(root.iterdir()):
                if (folder / CONFIG).is_file():
                    found.setdefault(folder.name, folder)
    return found


def list_models() -> list[str]:
    """Names of the shipped models, sorted; each can be given to `load`, `extend` and the command line."""
    return sorted(name for name, folder in _shipped().items() if _card_text(folder))


def describe(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `bwe models` shows of a checkpoint folder, without opening its weights.

    Keys: name, folder, arch, sample_rate (Hz), version, commit, sha256, bytes (of the weights), summary (first sentence of
    the card), keeps_band (False of a model for body microphones, which makes the whole band anew). Raises ModelError as `read`
    does.
    """
    folder = find(name_or_path)
    meta = _read_meta(folder)
    weights = folder / WEIGHTS
    lines = (line.strip() for line in _card_text(folder).splitlines())
    summary = next((line for line in lines if line and not line.startswith(("#", "---", "|", "!["))), "")
    return {
        "name": folder.name,
        "folder": str(folder),
        **{key: meta[key] for key in ("arch", "sample_rate", "version", "commit", "sha256")},
        "bytes": weights.stat().st_size if weights.is_file() else 0,
        "summary": summary.split(". ")[0],
        "keeps_band": not meta["config"].get("told_hz"),
    }


def _card_text(folder: Path) -> str:
    try:
        return (folder / CARD).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """The checkpoint folder of a shipped name or of a folder path; a shipped name wins over a folder called the same.

    Raises ModelError: no such model (the nearest name and all that exist are named), or a file where a folder belongs.
    """
    shipped = _shipped()
    text = os.fspath(name_or_path)
    if isinstance(name_or_path, str) and text in shipped:
        return shipped[text]
    path = Path(text)
    if text and path.is_dir():
        return path
    if text and path.exists():
        raise ModelError(f"{path}: a model is a folder with {CONFIG}, {WEIGHTS} and {CARD}; this is a single file")
    backup = path.with_name(f".{path.name}.old") if path.name else path
    if path.name and (backup / CONFIG).is_file():
        raise ModelError(f"{path}: saving was interrupted here; the previous model is in {backup}: rename it back")
    known = ", ".join(list_models()) or "none in this installation"
    if isinstance(name_or_path, Path) or "/" in text or os.sep in text:
        raise ModelError(f"{text}: no such model folder; shipped models: {known}")
    hint = nearest(text, list_models())
    raise ModelError(f"unknown model {text!r}" + (f"; did you mean {hint!r}?" if hint else "") + f" (shipped: {known})")


def read(name_or_path: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any], str]:
    """Load a checkpoint: ``(generator in eval mode, on the CPU, in float32; meta of config.json; text of the card)``.

    ``name_or_path`` is a shipped name (`list_models`) or the path of a checkpoint folder. Raises ModelError in one
    sentence: unknown name, missing file, no card, damaged or foreign weights, unknown arch or config key, newer format,
    tensors that do not fit the config.
    """
    folder = find(name_or_path)
    meta = _read_meta(folder)
    card = _card_text(folder)
    if not card:
        raise ModelError(f"{folder}: the model has no card ({CARD} is missing or empty); models without one are refused")
    arch = meta["arch"]
    if arch not in _REGISTRY:
        hint = nearest(arch, _REGISTRY)
        raise ModelError(f"{folder / CONFIG}: unknown arch {arch!r}; did you mean {hint!r}? (known: {', '.join(_REGISTRY)})")
    cls = _REGISTRY[arch]
    try:
        config: Any = from_dict(_config_class(cls), meta["config"], str(folder / CONFIG))
    except ConfigError as error:
        raise ModelError(str(error)) from None
    state = _read_weights(folder / WEIGHTS, meta["sha256"])
    generator = _fit(cls, config, state, folder)
    if generator.sample_rate != meta["sample_rate"]:
        raise ModelError(
            f"{folder / CONFIG}: sample_rate says {meta['sample_rate']} Hz, its config builds {generator.sample_rate} Hz"
        )
    return generator.eval(), meta, card


def upgrade(meta: dict[str, Any], where: str) -> dict[str, Any]:
    """Bring the meta of an older format to the current one; the only place that knows old formats.

    Raises ModelError where the format is newer than this version, or none at all.
    """
    version = meta.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ModelError(f"{where}: 'format' must be a number from 1 to {FORMAT}, not {version!r}")
    if version > FORMAT:
        raise ModelError(
            f"{where}: format {version} is newer than this bwe {bwe.__version__} can read ({FORMAT}); upgrade bwe"
        )
    return meta


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes; not a model config")
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder}: not a model folder ({CONFIG} is missing)") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(meta, dict):
        raise ModelError(f"{path}: must hold one JSON object")
    meta = upgrade(meta, str(path))
    for key, kind in _META_TYPES.items():
        if key not in meta:
            raise ModelError(f"{path}: key {key!r} is missing")
        if not isinstance(meta[key], kind) or isinstance(meta[key], bool):
            raise ModelError(f"{path}: {key} must be {kind.__name__}, not {meta[key]!r}")
    for key in meta:
        if key not in _META_TYPES:
            raise ModelError(f"{path}: unknown key {key!r}; did you mean {nearest(key, _META_TYPES)!r}?")
    return meta


def _read_weights(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    try:
        size = path.stat().st_size
        if size > MAX_WEIGHTS_BYTES:
            raise ModelError(f"{path}: {size / 2**30:.1f} GiB, above the cap of {MAX_WEIGHTS_BYTES / 2**30:.0f} GiB")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; the model folder is incomplete") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    _refuse_foreign(path, data)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ModelError(f"{path}: damaged, its sha256 is not the one in {CONFIG}; get the model again")
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error})") from None


def _refuse_foreign(path: Path, data: bytes) -> None:
    head = data[:64]
    if not data:
        raise ModelError(f"{path}: empty file (0 bytes)")
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path}: a git-LFS pointer, not the weights; run `git lfs pull`")
    if head.lstrip().startswith(b"<"):
        raise ModelError(f"{path}: a web page saved under this name, not the weights; get the model again")
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise ModelError(f"{path}: a Python pickle, which can run code when opened; bwe reads safetensors only")
    if len(data) < 10 or int.from_bytes(data[:8], "little") > len(data) - 8 or data[8:9] != b"{":
        raise ModelError(f"{path}: damaged or not a safetensors file (starts with {head[:12]!r})")


def _fit(cls: type[nn.Module], config: Any, state: dict[str, torch.Tensor], folder: Path) -> nn.Module:
    """Build the network with norms folded and load ``state`` strictly, saying in one sentence what does not fit."""
    try:
        # On the meta device first: shapes are compared before a config can ask for more memory than its weights have.
        with torch.device("meta"):
            blueprint = cls(config)
        generators.fold_weight_norm(blueprint)
        _compare(blueprint.state_dict(), state, folder)
        generator = _fresh(cls, config)
    except BweError as error:
        raise ModelError(str(error)) from None
    except (ValueError, TypeError, RuntimeError, ArithmeticError, AssertionError) as error:
        raise ModelError(f"{folder / CONFIG}: this config cannot be built ({error})") from None
    generators.fold_weight_norm(generator)
    generator.load_state_dict(state, strict=True)
    return generator.requires_grad_(False)


def _fresh(cls: type[nn.Module], config: Any) -> nn.Module:
    """``cls(config)`` that leaves the process's random number generator as it was."""
    with torch.random.fork_rng(devices=[]):
        return cls(config)


def _compare(wanted: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], folder: Path) -> None:
    missing = sorted(set(wanted) - set(state))
    unexpected = sorted(set(state) - set(wanted))
    shapes = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    parts = []
    for kind, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape:", shapes)):
        if names:
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            parts.append(f"{kind} {', '.join(names[:2])}{more}")
    if parts:
        raise ModelError(f"{folder / WEIGHTS}: the tensors do not fit the config: {'; '.join(parts)}")


def save(folder: str | os.PathLike[str], generator: nn.Module, card: str, half: bool = False) -> Path:
    """Write a checkpoint folder that `read` accepts; returns its path.

    The generator (of a registered class) is left as it is; in what is stored weight norm is folded and tensors are
    float32, or float16 with ``half=True`` (half the size; they load back as float32). Everything is written to a
    temporary folder beside the target, flushed to disk, then renamed, so a crash leaves the old model or the new one.
    Other files of a folder that is replaced are kept.

    Raises ConfigError (class not registered, card empty), ModelError (NaN or Inf in the weights) and OutputError (the
    target exists and is no checkpoint folder, or it cannot be written).
    """
    target = Path(folder).absolute()
    arch = _arch_of(generator)
    if not card.strip():
        raise ConfigError(f"{target}: a model needs a card; say what it was trained on, its licence, metrics and limits")
    network = _fresh(type(generator), generator.config)
    source = generator.state_dict()
    # Not a deep copy: torch shares the class of a parametrised module with its copies, and folding a copy would take the
    # weight norm's property away from the original. A generator that came from `read` is folded already.
    if network.state_dict().keys() != source.keys():
        generators.fold_weight_norm(network)
    network.load_state_dict(source)
    generators.fold_weight_norm(network)
    dtype = torch.float16 if half else torch.float32
    state = {
        name: tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous().clone()
        for name, tensor in network.state_dict().items()
    }
    bad = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise ModelError(f"{target}: refusing to save a model with NaN or Inf (first in {bad[0]})")
    weights = safetensors.torch.save(state)
    meta = {
        "format": FORMAT,
        "arch": arch,
        "config": dataclasses.asdict(typing.cast(Any, generator.config)),
        "sample_rate": generator.sample_rate,
        "version": bwe.__version__,
        "commit": _commit(),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    files = {
        WEIGHTS: weights,
        CARD: (card.rstrip() + "\n").encode(),
        CONFIG: (json.dumps(meta, indent=1) + "\n").encode(),
    }
    try:
        _replace_folder(target, files)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None
    return target


def _replace_folder(target: Path, files: Mapping[str, bytes]) -> None:
    backup = target.with_name(f".{target.name}.old")
    if backup.is_dir() and not target.exists():  # an earlier save was killed between its two renames
        os.rename(backup, target)
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / CONFIG).is_file())):
        raise OutputError(f"{target}: exists and is not a model folder; choose another path")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp", dir=target.parent))
    try:
        temporary.chmod(0o755)
        for name, data in files.items():
            with open(temporary / name, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        if target.is_dir():
            for other in target.iterdir():
                if other.name not in files:
                    copy_other = shutil.copytree if other.is_dir() else shutil.copy2
                    copy_other(other, temporary / other.name)
        _sync_folder(temporary)
        shutil.rmtree(backup, ignore_errors=True)
        if target.exists():
            os.rename(target, backup)
        try:
            os.rename(temporary, target)
        except OSError:
            if backup.is_dir():
                os.rename(backup, target)
            raise
        _sync_folder(target.parent)
        shutil.rmtree(backup, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable, where the system lets a folder be opened (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@functools.cache
def _commit() -> str:
    """git HEAD of the checkout this package runs from; empty for an installed package or without git."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if re.fullmatch(r"[0-9a-f]{40,64}\s*", done.stdout) else ""


register("seanet")(generators.SEANet)
for _name, _class in baselines.ARCHITECTURES.items():
    register(_name)(_class)
