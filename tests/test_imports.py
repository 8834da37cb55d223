"""The rules of imports, read from the source: they point down, and what is heavy comes late."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import glmchat

ROOT = Path(glmchat.__file__).parent
FILES = sorted(p for p in ROOT.rglob("*.py"))

# Each layer may import itself, those below it, and the values; engine and tools do not know each other.
BELOW = {
    "cli": {"terminal", "chat", "settings", "kinds", "engine", "tools", "glm"},
    "terminal": {"chat", "settings", "kinds", "engine", "tools", "glm"},
    "chat": {"engine", "tools", "glm"},
    "settings": {"kinds"},
    "engine": {"glm", "kinds", "locks"},
    "tools": {"glm", "locks"},
    "glm": {"kinds"},
    "events": {"messages"},
    "messages": set(),
    "errors": set(),
    "kinds": set(),
    "locks": set(),
}
VALUES = {"messages", "events", "errors"}
HEAVY = {"torch", "transformers", "accelerate"}
MAY_BE_HEAVY = {
    "engine/loading.py",
    "engine/loaded.py",
    "engine/environ.py",
    "engine/placing.py",
    "engine/hybrid.py",
    "engine/ranks.py",
    "engine/kv.py",
    "engine/mtp.py",
    "engine/attention.py",
    "engine/bandwidth.py",
    "engine/packing.py",
    "engine/native.py",
    "engine/experts.py",
    "engine/latent.py",
    "engine/fused.py",
    "engine/rotary.py",
    "engine/step.py",
    "engine/compiled.py",
    "engine/graphs.py",
}
SCREEN = {"rich", "prompt_toolkit"}


@dataclass(frozen=True)
class Import:
    module: str
    """Absolute: `glmchat.glm.parser`, `torch.nn`."""
    line: int
    at_top: bool
    """It runs when the file is imported."""

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def imports(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ["glmchat", *path.relative_to(ROOT).parts[:-1]]
    for node, at_top in _walk(tree, at_top=True):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_top)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from . import cli` names a module, `from .cli import main` something in one
                yield Import(f"{module}.{alias.name}" if module == "glmchat" else module, node.lineno, at_top)


def _walk(node: ast.AST, *, at_top: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        if _only_for_types(child):
            continue
        yield child, at_top
        inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _walk(child, at_top=at_top and not inner)


def _only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def layer(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
class TestFile:
    def test_imports_point_down(self, path: Path) -> None:
        own = path.relative_to(ROOT).with_suffix("").parts[0]
        if own in ("__init__", "__main__"):
            return
        values = {"errors"} if own in VALUES else VALUES
        allowed = BELOW[own] | {own} | values
        wrong = [
            f"line {i.line}: {i.module}"
            for i in imports(path)
            if i.package == "glmchat" and layer(i.module) not in allowed | {"", "__version__"}
        ]
        assert wrong == []

    def test_heavy_libraries_come_late_and_in_few_places(self, path: Path) -> None:
        name = path.relative_to(ROOT).as_posix()
        heavy = [i for i in imports(path) if i.package in HEAVY]
        assert [f"line {i.line}: {i.module}" for i in heavy if i.at_top or name not in MAY_BE_HEAVY] == []

    def test_only_the_terminal_knows_the_screen(self, path: Path) -> None:
        if path.relative_to(ROOT).parts[0] not in ("terminal", "cli.py"):
            assert [i for i in imports(path) if i.package in SCREEN] == []


def test_the_checks_see_imports() -> None:
    found = list(imports(ROOT / "glm" / "parser.py"))
    assert Import("glmchat.events", _line_of(ROOT / "glm" / "parser.py", "from ..events"), True) in found
    assert any(i.package in HEAVY and not i.at_top for f in MAY_BE_HEAVY for i in imports(ROOT / f))


def _line_of(path: Path, start: str) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(n for n, line in enumerate(lines, 1) if line.startswith(start))
