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
    {"audio", "dsp", "distributed"},
    {"layers", "degrade", "pitch", "pictures"},
    {"metrics", "generators", "discriminators", "losses", "latent.conditioning"},
    {"baselines", "data", "hub", "runs", "latent.codec", "latent.dit", "latent.retrieval"},
    {"train", "export", "latent.flow"},
    {"infer"},
    {"evaluate", "report"},
    {"cli", "web"},
    {"__main__"},
]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}

FORBIDDEN_IMPORTS = {
    "pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "yaml", "socket", "urllib", "http", "requests", "httpx",
    "huggingface_hub", "ftplib", "cloudpickle",
}  # fmt: skip
FORBIDDEN_CALLS = {
    "eval", "exec", "torch.load", "torch.save", "torch.hub.load", "torch.hub.load_state_dict_from_url", "os.system",
    "os.popen",
}  # fmt: skip


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


@pytest.mark.parametrize("name", list(MODULES))
def test_nothing_runs_code_from_files_or_opens_connections(name: str) -> None:
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            roots = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots = {(node.module or "").split(".")[0]}
        else:
            roots = set()
        assert not roots & FORBIDDEN_IMPORTS, f"bwe/{name}, line {node.lineno}: import of {roots}"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN_CALLS, f"bwe/{name}, line {node.lineno}: {ast.unparse(node.func)}"
            keywords = {k.arg: k.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            for unsafe in ("shell", "allow_pickle"):
                assert unsafe not in keywords or not keywords[unsafe].value, f"bwe/{name}, line {node.lineno}: {unsafe}"  # type: ignore[attr-defined]


def test_the_rule_sees_a_violation() -> None:
    assert imported(ast.parse("def f():\n    from bwe.infer import load")) == {"infer"}
    assert imported(ast.parse("from bwe import hub, __version__\nimport bwe.audio")) == {"hub", "audio"}
    assert LEVEL["infer"] > LEVEL["hub"] > LEVEL["audio"]
