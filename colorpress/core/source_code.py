"""Which of colorpress' own files a module's answers depend on, read from the code itself: no list can be wrong."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from colorpress.core.files import sha256_file

ROOT = Path(__file__).resolve().parents[2]


def hash_code(*modules: str, within: str = "") -> str:
    """The SHA-256 over the files that `modules`, such as "training.fitting", can reach by imports.

    Args:
        within: a folder whose files alone count, such as "training"; empty: all.
    """
    reached = {file for module in modules for file in reachable_files(module, ROOT)}
    files = sorted(file for file in reached if file.is_relative_to(ROOT / within))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(ROOT)} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


@cache
def reachable_files(module: str, root: Path) -> frozenset[Path]:
    """The file of a module and of all that it imports of this project, inside functions too, and the data they name.

    What stands under `if TYPE_CHECKING` is not run and does not count. A worker that is started as a process is
    reached since whoever starts it imports it for its name. Data is what lies beside a module and is named in it by a
    text, such as a template, or named in such data, such as what a template includes; of a folder everything but code.

    Args:
        root: the folder that holds the packages.
    """
    found: set[Path] = set()
    waiting = [module]
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        file = _file_of(name, root)
        if file is None:
            continue
        found |= {file, *_named_data(file)}
        # A package's own __init__ is run ahead of what lies in it.
        parents = [name.rpartition(".")[0]] if "." in name else []
        fresh = {each for each in (*parents, *imported_names(file)) if each.partition(".")[0]} - seen
        seen |= fresh
        waiting += fresh
    return frozenset(found)


@cache
def imported_names(file: Path) -> frozenset[str]:
    """What a file imports when it runs, by dotted name: of `from a import b` both "a" and "a.b"."""
    names: set[str] = set()
    for node in _run_nodes(_parse(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def _run_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from _run_nodes(node)


@cache
def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes())


def _file_of(module: str, root: Path) -> Path | None:
    """The file of a module of this project; None for what is no such module."""
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def _named_data(file: Path) -> frozenset[Path]:
    texts = {
        node.value for node in ast.walk(_parse(file)) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    others = [beside for beside in file.parent.iterdir() if beside.suffix not in (".py", ".pyc")]
    waiting = [beside for beside in others if beside.name in texts]
    data: set[Path] = set()
    while waiting:
        found = waiting.pop()
        if found.is_dir():
            data |= {each for each in found.rglob("*") if each.is_file() and each.suffix not in (".py", ".pyc")}
        elif found not in data:
            data.add(found)
            content = found.read_bytes()
            waiting += [beside for beside in others if beside.name.encode() in content]
    return frozenset(data)
