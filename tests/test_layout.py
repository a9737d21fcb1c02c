"""One floor a folder: imports run one way, in no circle, and outside libraries have one door each."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

from colorpress.core.source_code import ROOT, imported_names

# Each floor may import itself and those before it.
FLOORS = (
    "colorpress.core", "training", "export", "compress", "benchmarks", "colorpress", "benchmarks.peers",
    "benchmarks.studies",
)  # fmt: skip
PACKAGES = ("colorpress", "training", "compress", "export", "benchmarks")
# Templates of a bundle are code for the user's machine.
MODULES = sorted(
    path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "templates" not in path.parts
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


BY_NAME = {module_name(path): path for path in MODULES}


def floor_of(module: str) -> int:
    if module in ("colorpress", "benchmarks"):  # the packages themselves hold no more than a version and a docstring
        return 0
    return max(
        (index for index, floor in enumerate(FLOORS) if f"{module}.".startswith(f"{floor}.")),
        key=lambda index: len(FLOORS[index]),
    )


def imports_of(path: Path) -> set[str]:
    """Modules of this project that a file imports, inside functions too."""
    return {name for name in imported_names(path) if name in BY_NAME} - {module_name(path)}


def mentions_of(path: Path) -> set[str]:
    """The same, with what is imported for types alone."""
    names = {
        name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    }
    return (names & BY_NAME.keys()) - {module_name(path)} | imports_of(path)


def find_circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty where there is none."""
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(imports.get(name, ())):
            if circle := follow(other, [*way, name]):
                return circle
        done.add(name)
        return []

    return next(filter(None, (follow(name, []) for name in sorted(imports))), [])


def test_the_tree_is_there() -> None:
    assert len(MODULES) > 25


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    here = floor_of(module_name(path))
    above = sorted(name for name in imports_of(path) if floor_of(name) > here)
    assert not above, f"{path.relative_to(ROOT)} imports {above[0]}, which is on a floor above"


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert not (circle := find_circle({name: mentions_of(path) for name, path in BY_NAME.items()})), " -> ".join(circle)


def test_a_circle_is_found() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_a_worker_is_imported_by_whoever_starts_it() -> None:
    """Else its code would be missing from the keys of the stages that it works for."""
    for path in MODULES:
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        started = {name for name in BY_NAME if "." in name and name in texts} - {module_name(path)}
        assert started <= imports_of(path), f"{path.relative_to(ROOT)} names {started - imports_of(path)} in a text"


def test_each_outside_library_has_its_one_door() -> None:
    studies, peers = "benchmarks/studies", "benchmarks/peers"
    doors = {
        "click": {
            "colorpress/cli.py",
            "colorpress/command_options.py",
            f"{peers}/__main__.py",
            *(path.relative_to(ROOT).as_posix() for path in MODULES if path.is_relative_to(ROOT / studies)),
        },
        "matplotlib": {"colorpress/core/charts.py"},
        "torch_pruning": {f"{peers}/torch_pruning_recipe.py"},
        # Templates of a page, and of what lies in a bundle.
        "jinja2": {"benchmarks/report/page.py", "export/bundle/bundle.py"},
        **{tool: {f"{peers}/{tool}_recipe.py"} for tool in ("nncf", "olive", "modelopt", "aimet")},
    }
    for path in MODULES:
        here = path.relative_to(ROOT).as_posix()
        for name in imported_names(path):
            allowed = doors.get(name.partition(".")[0])
            assert allowed is None or here in allowed, f"{here} imports {name}"


def test_onnx_runtime_sessions_are_made_in_one_place() -> None:
    for path in MODULES:
        if path.parent.name not in ("peers", "studies"):
            named = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
            named &= {"InferenceSession", "SessionOptions"}
            assert not named or path.name == "sessions.py", f"{path.relative_to(ROOT)} names {named}"


def test_what_is_installed_is_listed() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {module_name(path) for path in MODULES if path.name == "__init__.py"}
    not_installed = ("benchmarks.peers", "benchmarks.studies")
    assert set(setup["packages"]) == {name for name in found if not name.startswith(not_installed)}
    data = {
        path
        for package, patterns in setup["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    here = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    assert data == {path for path in here - set(MODULES) if path.parent.name != "__pycache__"}


def test_file_names_are_unique_and_say_the_thing() -> None:
    names = [path.stem for path in MODULES if path.stem not in ("__init__", "__main__")]
    assert len(names) == len(set(names))
    assert not {"utils", "helpers", "common", "misc"} & set(names)


def test_torch_load_always_says_weights_only() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                keywords = {each.arg: ast.unparse(each.value) for each in node.keywords}
                assert keywords.get("weights_only") == "True", f"{path.name}:{node.lineno}"
