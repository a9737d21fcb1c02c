"""training/user_code: the place in an author's code that an error is from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from training.user_code import find_place


def _fail_in(package: Path) -> BaseException:
    """The error of a function of PyTorch that calls one of the author's, with PyTorch's files named by `package`."""
    code = "def call(function):\n    function()\n    raise ValueError('passed on')\n"
    names: dict[str, object] = {}
    exec(compile(code, str(package / "functional.py"), "exec"), names)
    with pytest.raises(ValueError, match="passed on") as caught:
        names["call"](lambda: None)  # type: ignore[operator]
    return caught.value


def test_pytorch_is_no_author_where_the_environment_is_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "environment").symlink_to(sys.prefix)
    package = tmp_path / "environment" / Path(torch.__path__[0]).resolve().relative_to(Path(sys.prefix).resolve())
    place = find_place(_fail_in(package / "nn"))
    assert place.startswith(Path(__file__).name), place
