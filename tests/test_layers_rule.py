"""Arrows point down only, and nothing in the package can run code from a file or open a connection."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "bwe"

# Modules of one level do not import one another. errors and _torchaudio are leaves that anybody may use.
LEVELS = [
    {"errors", "_torchaudio"},
    {"containers", "codecs"},
    {"audio", "dsp", "distributed"},
    {"layers", "degrade", "fusion", "perceptual", "pitch", "pictures", "corpora"},
    {"metrics", "generators", "baselines", "discriminators", "losses", "latent.conditioning"},
    {"data", "hub", "page", "runs", "stepper", "latent.codec", "latent.dit", "latent.retrieval"},
    {"evaluation_page", "onnx_backend", "paired"},
    {"train", "export", "latent.flow"},
    {"infer"},
    {"evaluate", "report", "inspection", "doctor", "batch", "live"},
    {"cli", "web"},
    {"__main__"},
]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}

# What reads code out of data, opens connections, or hands a string to a shell.
FORBIDDEN_IMPORTS = {
    "aiohttp", "cffi", "cloudpickle", "code", "codeop", "ctypes", "dbm", "dill", "fsspec", "ftplib", "hickle", "http", "httpx",
    "huggingface_hub", "hydra", "hyperpyyaml", "imaplib", "imp", "importlib.machinery", "importlib.util", "joblib",
    "jsonpickle", "marshal", "multiprocessing.connection", "omegaconf", "pickle", "cPickle", "poplib", "pty", "requests",
    "ruamel", "runpy", "shelve", "smtplib", "socket", "socketserver", "ssl", "telnetlib", "torch.package",
    "torch.utils.cpp_extension", "urllib", "urllib3", "webbrowser", "websockets", "xmlrpc", "yaml", "zipimport",
}  # fmt: skip
FORBIDDEN_NAMES = {
    "eval", "exec", "compile", "__import__", "breakpoint",
    "builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__",
    "asyncio.open_connection", "asyncio.start_server", "asyncio.create_subprocess_shell", "asyncio.create_subprocess_exec",
    "numpy.load", "numpy.lib.format.read_array", "pandas.read_pickle",
    "os.system", "os.popen", "os.startfile", "os.posix_spawn", "os.posix_spawnp", "os.execl", "os.execle", "os.execlp",
    "os.execlpe", "os.execv", "os.execve", "os.execvp", "os.execvpe", "os.spawnl", "os.spawnle", "os.spawnlp", "os.spawnlpe",
    "os.spawnv", "os.spawnve", "os.spawnvp", "os.spawnvpe",
    "shutil.unpack_archive", "subprocess.getoutput", "subprocess.getstatusoutput",
    "torch.load", "torch.save", "torch.jit.load", "torch.export.load", "torch.hub", "torch.package",
    "torch.serialization.load", "torch.classes.load_library", "torch.ops.load_library", "torch.utils.cpp_extension",
}  # fmt: skip
# Methods, whatever they are called on. An archive's members may be named ``../../x``.
FORBIDDEN_METHODS = {"extractall", "unpack_archive", "register_custom_ops_library", "read_pickle", "load_library"}
FORBIDDEN_KEYWORDS = {"shell": False, "allow_pickle": False, "trust_remote_code": False, "weights_only": True}
SUBPROCESSES = {"subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_call", "subprocess.check_output"}
# A recipe is a program: it is run on purpose. mallopt is libc's, named by a constant.
ALLOWED = {
    "train": {"importlib.util", "importlib.util.spec_from_file_location", "importlib.util.module_from_spec", "ctypes"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__" or len(parts) == 1)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if "pretrained" not in path.parts}


def imported(tree: ast.AST) -> set[str]:
    """Modules of bwe that a file imports, anywhere in it, as names relative to the package."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("bwe.") for alias in node.names if alias.name.startswith("bwe.")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            if node.module == "bwe":
                found |= {alias.name for alias in node.names if alias.name in MODULES}
            elif node.module and node.module.startswith("bwe."):
                name = node.module.removeprefix("bwe.")
                deeper = {f"{name}.{alias.name}" for alias in node.names if f"{name}.{alias.name}" in MODULES}
                found |= deeper or {name}
    return found


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__init__"])
def test_imports_point_down(name: str) -> None:
    level = LEVEL.get(name, LEVEL.get(name.split(".")[0]))
    if level is None:
        pytest.fail(f"{name} has no level yet: add it to LEVELS")
    for other in imported(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        other_level = LEVEL.get(other, LEVEL.get(other.split(".")[0], -1))
        assert other_level < level, f"bwe/{name} (level {level}) imports bwe/{other} (level {other_level})"


def test_package_imports_nothing_of_its_own_eagerly() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    eager = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in eager}
    assert names <= {"__future__", "importlib", "sys", "types", "typing"}


def qualified_names(tree: ast.AST) -> dict[str, str]:
    """What each name that a file imports stands for: ``np`` for ``numpy``, ``load`` for ``torch.load``."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else "" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {name: stands_for or name for name, stands_for in names.items()}


def dangers(source: str, name: str = "") -> list[str]:
    """What in a module's source could run code out of a file, open a connection or reach a shell, with the line."""
    tree = ast.parse(source)
    known = qualified_names(tree)
    allowed = ALLOWED.get(name, set())
    lists = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found: list[str] = []

    def say(node: ast.AST, what: str) -> None:
        found.append(f"line {getattr(node, 'lineno', 0)}: {what}")

    def full_name(node: ast.expr) -> str:
        root, dot, rest = ast.unparse(node).partition(".")
        return known.get(root, root) + dot + rest

    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for module in modules:
            parts = module.split(".")
            prefixes = {".".join(parts[: n + 1]) for n in range(len(parts))}
            if prefixes & (FORBIDDEN_IMPORTS | FORBIDDEN_NAMES) - allowed:
                say(node, f"import of {module}")
        if isinstance(node, ast.Name | ast.Attribute):
            reference = full_name(node)
            if reference in FORBIDDEN_NAMES or reference.startswith(("importlib.util.", "importlib.machinery.")):
                if reference not in allowed:
                    say(node, reference)
            elif isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_METHODS:
                say(node, node.attr)
        if not isinstance(node, ast.Call):
            continue
        for keyword in node.keywords:
            if keyword.arg in FORBIDDEN_KEYWORDS:
                value = keyword.value
                if not isinstance(value, ast.Constant) or value.value is not FORBIDDEN_KEYWORDS[keyword.arg]:
                    say(node, f"{keyword.arg}={ast.unparse(value)}")
        function = full_name(node.func)
        if function == "importlib.import_module":
            module_text = ast.unparse(node.args[0])
            if not isinstance(node.args[0], ast.Constant) and not module_text.startswith("f'bwe."):
                say(node, f"import of a module by the name in {module_text}")
        if function in SUBPROCESSES:
            command = node.args[0] if node.args else None
            if not (isinstance(command, ast.List) or (isinstance(command, ast.Name) and command.id in lists)):
                say(node, f"{function} of something that is no list of arguments")
            if "stdin" not in {keyword.arg for keyword in node.keywords}:
                say(node, f"{function} whose child reads this process's stdin")
    return found


@pytest.mark.parametrize("name", list(MODULES))
def test_nothing_runs_code_from_files_or_opens_connections(name: str) -> None:
    assert not dangers(MODULES[name].read_text(encoding="utf-8"), name)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "import pickle as p", "from pickle import loads", "def f():\n    import yaml",
        "import urllib.request", "from xmlrpc import client", "import shelve", "from multiprocessing.connection import Client",
        "import torch.package", "import torch\ntorch.load(p)", "import torch as t\nt.load(p)", "from torch import load",
        "read = torch.load", "import torch\ntorch.load(p, weights_only=True)", "import torch\ntorch.hub.load('a', 'b')",
        "from torch import hub", "torch.jit.load(p)", "import numpy as np\nnp.load(p)",
        "import numpy as np\nnp.loadtxt(p, allow_pickle=flag)", "eval(text)", "exec(text)", "compile(text, 'a', 'exec')",
        "__import__(name)", "run = exec", "import builtins\nbuiltins.eval(x)", "import os\nos.system(c)",
        "from os import system", "from os import popen as p", "import os\nos.execvp('a', [])",
        "import subprocess\nsubprocess.run('ls', stdin=0)", "import subprocess\nsubprocess.run(f'ls {p}', stdin=0)",
        "import subprocess as s\ns.run(c, stdin=0)", "import subprocess\nsubprocess.run(['ls'])",
        "import subprocess\nsubprocess.run(['ls'], shell=True, stdin=0)", "from subprocess import Popen\nPopen('ls', stdin=0)",
        "import subprocess\nsubprocess.getoutput('ls')", "import importlib\nimportlib.import_module(config['_target_'])",
        "from importlib import import_module as load\nload(name)", "import importlib.util", "from importlib import util",
        "import ctypes", "archive.extractall(folder)", "import shutil\nshutil.unpack_archive(p)",
        "options.register_custom_ops_library(p)",
    ],
)  # fmt: skip
def test_a_danger_is_seen(source: str) -> None:
    assert dangers(source)


@pytest.mark.parametrize(
    "source",
    [
        "import ast\nast.literal_eval(text)", "import re\nre.compile(p)", "model.eval()", "import json\njson.load(f)",
        "import subprocess\nsubprocess.run(['git', p], stdin=subprocess.DEVNULL)", "import numpy as np\nnp.save(p, x)",
        "import subprocess\nc = ['git', p]\nsubprocess.run(c, stdin=subprocess.DEVNULL)",
        "from bwe.infer import load\nload(p)", "import importlib\nimportlib.import_module('soundfile')",
        "import safetensors.torch\nsafetensors.torch.load(data)", "import importlib\nimportlib.import_module(f'bwe.{home}')",
        "import importlib.metadata",
    ],
)  # fmt: skip
def test_what_is_harmless_passes(source: str) -> None:
    assert not dangers(source)


def test_the_rule_sees_a_violation() -> None:
    assert imported(ast.parse("def f():\n    from bwe.infer import load")) == {"infer"}
    assert imported(ast.parse("from bwe import hub, __version__\nimport bwe.audio")) == {"hub", "audio"}
    assert LEVEL["infer"] > LEVEL["hub"] > LEVEL["audio"]
