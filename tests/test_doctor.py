"""What doctor says is missing: by colorpress' own metadata, its markers and extras."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from colorpress.doctor import describe_environment, format_environment, list_packages

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def require(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: list(lines))


def test_every_dependency_and_what_people_may_want_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = [
        f'{line}; extra == "{extra}"' for extra, lines in project["optional-dependencies"].items() for line in lines
    ]
    require(monkeypatch, *project["dependencies"], *extras)
    packages = list_packages()
    required = {name for name, purpose in packages.items() if purpose == "required"}
    assert required == {Requirement(line).name for line in project["dependencies"]}
    assert packages["onnxruntime-gpu"] == "times ONNX models on a CUDA device (pip install -e '.[gpu]')"
    assert {"openvino", "nncf", "psycopg", "numba", "pillow-heif"} <= set(packages)
    assert not {"pytest", "ruff", "selenium"} & set(packages)


def test_markers_decide_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    require(monkeypatch, "numpy>=2", "no-such-a; extra == 'gpu'", "no-such-b; python_version < '3'", "no-such-c",
            "no-such-d; extra == 'test'")  # fmt: skip
    found = describe_environment()
    assert found["missing"] == [
        "no-such-c: required", "no-such-a: times ONNX models on a CUDA device (pip install -e '.[gpu]')"
    ]  # fmt: skip
    assert found["versions"]["no-such-c"] is None and "machine" not in found
    lines = format_environment(found).splitlines()
    assert lines[0].endswith(": packages are missing: pip install -e .") and "missing  no-such-c: required" in lines
    assert any(line.startswith("optional no-such-a: times ONNX models") for line in lines)


def test_a_missing_extra_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    require(monkeypatch, "numpy>=2", "no-such-a; extra == 'peers'")
    found = describe_environment()
    found["machine"]["memory_bytes"] = 25_276_502_016
    lines = format_environment(found).splitlines()
    assert lines[0].endswith(": all that it needs is installed") and "  memory: 25.3 GB" in lines


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", fail)
    assert list_packages() == {"colorpress": "its packages are not known (pip install -e .)"}
