"""Where the code that --arch names lies, before any of it is run: its file, its package, and what it imports."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

from colorpress.core.errors import ConfigError
from colorpress.core.files import sha256_bytes

# Our own modules are imported already; a project of the user's may have some of the same names.
_OWN_PACKAGES = {"colorpress", "training", "export", "compress", "benchmarks"}
# Folders above a file that code may import from, as a project's does that is run from its own folder.
_FOLDERS_ABOVE = 3
_MOST_FILES = 500


@dataclass(frozen=True)
class CodePlace:
    """Code that can be run.

    Attributes:
        file: what is run; the __init__.py of a package.
        module: its name, such as "unet.model"; that of a file of no package is no other's.
        root: the folder that holds its package, or the file.
        title: what it is called, without the folders above its package.
        is_installed: whether Python finds it by itself.
    """

    file: Path
    module: str
    root: Path
    title: str
    is_installed: bool = False

    @property
    def is_alone(self) -> bool:
        """Whether the file belongs to no package."""
        return self.file.parent == self.root

    @property
    def absolute(self) -> str:
        """What names it with --arch from any folder."""
        if self.is_installed:
            return self.module
        return str(self.file if self.is_alone else self.root / self.module)

    @property
    def hint(self) -> str:
        """How the user sees for himself why it fails."""
        if self.is_alone:
            return f"it must run by itself: try `python {self.file.name}` in its folder"
        where = "" if self.is_installed else f" in the folder '{self.root}'"
        return f"it must import by itself: try `python -c 'import {self.module}'`{where}"

    @property
    def front(self) -> list[str]:
        """The folders that `import` searches first: the root, and one with a package that is called as ours are."""
        if self.is_installed:
            return []
        ours = [folder for folder in self.back if any(_is_code(Path(folder, name)) for name in _OWN_PACKAGES)]
        return [str(self.root), *ours]

    @cached_property
    def back(self) -> list[str]:
        """The folders that `import` searches last: the file's own, and some above."""
        if self.is_installed:
            return []
        above = self.root.parents[:_FOLDERS_ABOVE]
        return [str(each) for each in (*(() if self.is_alone else (self.file.parent,)), *above)]

    @cached_property
    def _first_names(self) -> set[str]:
        """What `import` may find in the first folder."""
        if self.is_installed:
            return {self.module.partition(".")[0]}
        return {entry.name.removesuffix(".py") for entry in os.scandir(self.root) if _is_code(Path(entry.path))}

    def provides(self, name: str) -> bool:
        """Whether one of its folders holds a module of that name, or the package that it is in."""
        top = name.partition(".")[0]
        return top in self._first_names or any(
            _is_code(Path(folder, each)) for folder in self.back for each in (top, f"{top}.py")
        )

    def shadows(self, name: str, module: ModuleType) -> bool:
        """Whether a module that is imported, of another place, is not what this code means by the name."""
        top = name.partition(".")[0]
        if self.is_installed or top in sys.stdlib_module_names or top not in self._first_names | _OWN_PACKAGES:
            return False
        return self.provides(name) and not self.owns(name, module)

    def owns(self, name: str, module: ModuleType) -> bool:
        """Whether a module lies in one of its folders, as `import` finds it there."""
        if name == self.module and self.is_alone:
            return True
        top = name.partition(".")[0]
        file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
        if file is None or (self.is_installed and top not in self._first_names):
            return False
        places = [f"{folder}{os.sep}{top}" for folder in (str(self.root), *self.back)]
        return any(f"{file}{os.sep}".startswith((place + os.sep, f"{place}.")) for place in places)

    @property
    def bare_packages(self) -> dict[str, Path]:
        """The packages above it that have no __init__.py: `import` would rather find one elsewhere that has."""
        if self.is_alone or self.is_installed:
            return {}
        parts = self.module.split(".")[: -1 if self.file.name != "__init__.py" else None]
        folders = {".".join(parts[: at + 1]): self.root.joinpath(*parts[: at + 1]) for at in range(len(parts))}
        return {name: folder for name, folder in folders.items() if not (folder / "__init__.py").is_file()}

    def holds(self, file: Path) -> bool:
        """Whether a file is of this code, as far as a reader is concerned."""
        return file == self.file or (not self.is_installed and file.is_relative_to(self.root))

    def describe(self, file: Path) -> str:
        """A file by its place from the root."""
        return Path(os.path.relpath(file, self.root)).as_posix()

    def reachable_files(self) -> set[Path]:
        """The file and all that it can import of its own folders, inside functions too."""
        folders = [self.root] if self.is_installed else [self.root, *map(Path, self.back)]
        found: set[Path] = set()
        waiting = {self.file, *(() if self.is_alone else _files_of(self.root, self.module))}
        while waiting:
            file = waiting.pop()
            found.add(file)
            for level, name in _imported(file):
                bases = folders
                if level:
                    bases = [file.parents[level - 1]] if level <= len(file.parents) else []
                elif self.is_installed and name.partition(".")[0] not in self._first_names:
                    bases = []
                waiting |= next((files for base in bases if (files := _files_of(base, name))), set()) - found
        return found


def find_place(where: str, name: str) -> CodePlace:
    """Where code lies that is named as a file, as the folder of a package, or as a module, from here or from a folder.

    Args:
        name: the class or function that is looked for there, for what is said.
    Raises:
        ConfigError: there is none.
    """
    path = Path(where)
    if path.is_file():
        return _place_of_file(path.resolve())
    if path.is_dir():
        if (path / "__init__.py").is_file():
            return _place_of_file((path / "__init__.py").resolve())
        raise ConfigError("network file", path, "is a folder without an __init__.py", name_file(path, name))
    if path.name and all(part.isidentifier() for part in path.name.split(".")) and path.suffix != ".py":
        if place := _place_of_module(path.parent.resolve(), path.name):
            return place
        if path.parent == Path() and (place := _place_installed(path.name)):
            return place
    hint = "give FILE.py:NAME with --arch, FOLDER:NAME of a package, or package.module:NAME that Python finds from here"
    raise ConfigError("network file", path, "no such file", hint)


def name_file(folder: Path, name: str) -> str:
    """A hint for a class or function that some file in a folder defines."""
    defined = [file for file in sorted(folder.rglob("*.py"))[:_MOST_FILES] if _defines(file, name)]
    return f"name the file: --arch {defined[0] if defined else folder / 'FILE.py'}:{name}"


def _place_of_file(file: Path) -> CodePlace:
    levels = _count_packages(file)
    if not levels:
        unique = f"colorpress_foreign_{sha256_bytes(str(file).encode())[:12]}"
        return CodePlace(file, unique, file.parent, file.name)
    root = file.parents[levels]
    inside = file.relative_to(root)
    is_package = file.name == "__init__.py"
    module = ".".join(inside.parent.parts if is_package else inside.with_suffix("").parts)
    return CodePlace(file, module, root, (inside.parent if is_package else inside).as_posix())


def _count_packages(file: Path) -> int:
    """How many of the folders above a file are packages, by their __init__.py or since the file imports from there."""
    needed = 0
    for level, name in _imported(file):
        by_name = (
            above
            for above, folder in enumerate(file.parents[: _FOLDERS_ABOVE + 1])
            if above and file.parents[above - 1].name == name.partition(".")[0] and _files_of(folder, name)
        )
        needed = max(needed, level or next(by_name, 0))
    named = [folder.name.isidentifier() for folder in file.parents]
    packages = [(folder / "__init__.py").is_file() for folder in file.parents]
    levels = packages.index(False)
    levels = max(levels, min(needed, len(packages) - 1))
    return min(levels, named.index(False))


def _place_of_module(root: Path, module: str) -> CodePlace | None:
    files = [file for file in _files_of(root, module) if _module_of(root, file) == module]
    if not files:
        return None
    if files[0].parent == root:
        return _place_of_file(files[0])
    return CodePlace(files[0], module, root, module)


def _place_installed(module: str) -> CodePlace | None:
    """A module that Python finds; what it is in is not run."""
    top, *rest = module.split(".")
    with suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(top)
        for count in range(len(rest)):
            if spec is None:
                return None
            name = ".".join((top, *rest[: count + 1]))
            spec = importlib.machinery.PathFinder.find_spec(name, spec.submodule_search_locations)
        if spec is not None and spec.origin and spec.origin.endswith(".py"):
            file = Path(spec.origin).resolve()
            levels = len(rest) + (file.name == "__init__.py")
            return CodePlace(file, module, file.parents[levels], module, is_installed=True)
    return None


def _is_code(path: Path) -> bool:
    """Whether `import` may find something at a path: a file of Python, or a folder that holds some."""
    return path.suffix == ".py" if not path.is_dir() else any(path.glob("*.py"))


def _module_of(root: Path, file: Path) -> str:
    inside = file.relative_to(root)
    return ".".join(inside.parent.parts if file.name == "__init__.py" else inside.with_suffix("").parts)


def _files_of(root: Path, module: str) -> set[Path]:
    """The file of a dotted name below a folder, and those of the packages that it is in."""
    found, path = set(), root
    for part in module.split(".") if module else ():
        path /= part
        found |= {file for file in (path.with_name(f"{part}.py"), path / "__init__.py") if file.is_file()}
    return found


def _imported(file: Path) -> Iterator[tuple[int, str]]:
    """What a file imports: the dots ahead of a name, and the name; of `from a import b` both "a" and "a.b"."""
    for node in ast.walk(_parse(file)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield node.level, base
            yield from ((node.level, f"{base}.{alias.name}".lstrip(".")) for alias in node.names if alias.name != "*")


def _defines(file: Path, name: str) -> bool:
    nodes = _parse(file).body
    return any(isinstance(each, ast.ClassDef | ast.FunctionDef) and each.name == name for each in nodes)


def _parse(file: Path) -> ast.Module:
    """The code of a file; nothing where it is none, which running it will say."""
    with suppress(SyntaxError, ValueError, OSError):
        return ast.parse(file.read_bytes())
    return ast.Module([], [])
