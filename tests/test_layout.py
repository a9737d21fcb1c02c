"""Imports run one way, and only where they may."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = [
    "colorpress.ground", "training", "compress", "export", "benchmarks", "colorpress.front", "benchmarks.peers",
    "benchmarks.studies",
]  # fmt: skip
PACKAGES = ("colorpress", "training", "compress", "export", "benchmarks", "benchmarks/peers", "benchmarks/studies")
GROUND = {"errors", "files", "console", "config", "cores", "processes", "__init__"}
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).glob("*.py"))


def floor(package: str, module: str) -> int:
    if package == "colorpress":
        return ORDER.index("colorpress.ground" if module in GROUND else "colorpress.front")
    return ORDER.index(package)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_tree_is_there() -> None:
    assert len(MODULES) > 25


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_run_one_way(path: Path) -> None:
    here = floor(".".join(path.parent.relative_to(ROOT).parts), path.stem)
    for name in imported(path):
        package, _, rest = name.partition(".")
        if package in PACKAGES:
            module = rest.partition(".")[0] or "__init__"
            if (ROOT / package / module / "__init__.py").exists():
                package, module = f"{package}.{module}", "__init__"
            elif not (ROOT / package / f"{module}.py").exists():
                module = "__init__"
            assert floor(package, module) <= here, f"{path.parent.name}/{path.name} imports {name}"


def test_each_outside_library_has_its_one_door() -> None:
    doors = {
        "click": {"colorpress/cli.py", "peers/__main__.py", "studies/distillation_levers.py"},
        # The second one shows the tool as its README does, to be compared with.
        "torch_pruning": {"compress/dependency_graph.py", "peers/torch_pruning_recipe.py"},
        "jinja2": {"benchmarks/report.py"},
        **{tool: {f"peers/{tool}_recipe.py"} for tool in ("nncf", "olive", "modelopt")},
    }
    for path in MODULES:
        for name in imported(path):
            allowed = doors.get(name.partition(".")[0])
            here = f"{path.parent.name}/{path.name}"
            assert allowed is None or here in allowed, f"{here} imports {name}"


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


def test_what_the_readmes_link_to_is_there() -> None:
    for readme in (ROOT / "README.md", *(ROOT / "reports").glob("**/README.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", readme.read_text()):
            assert "://" in link or (readme.parent / link).exists(), f"{readme.relative_to(ROOT)} links to {link}"
