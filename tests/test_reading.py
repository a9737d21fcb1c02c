"""Files that somebody edited or damaged end in a sentence about the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colorpress.core.errors import ConfigError, InputError
from colorpress.core.reading import as_damaged, read_file, read_json, read_text, read_toml


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "is not JSON: .* in line 1"),
        (b"[" * 5000, "is not JSON: it is nested too deeply"),
        (b"\xff\xfe", "is not JSON: byte 0 is none of UTF-8"),
        (b'"\0"', "is not JSON: it holds NUL characters"),
        (b'"\\u0000"', "is not JSON: it holds NUL characters"),
        (b"9223372036854775808", "is not JSON: 9223372036854775808 is too large"),
        (b"1" * 5000, "is too large a number"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=why):
        read_json(path, "record", "make it again")


def test_json_has_no_nan_and_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf[NaN, -Infinity, 1e999, 0.5, 9223372036854775807, "\\u00e9"]')
    assert read_json(path, "record", "") == [None, None, None, 0.5, 2**63 - 1, "é"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("a = ", "is not TOML"),
        (f"a = {'[' * 5000}", "nested too deeply"),
        (f"a = [{2**63}]", "too large"),
        ("a = 1\0", "NUL"),
    ],
)
def test_what_is_no_toml_is_refused(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(content)
    with pytest.raises(InputError, match=why):
        read_toml(path, "options", "")


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="not a regular file"):
            read_file(path, "record", "")
    for path in (tmp_path / "none", tmp_path / "pipe" / "x", Path("a\0b")):
        with pytest.raises(ConfigError, match="no such file"):
            read_file(path, "record", "")
    with pytest.raises(InputError, match="cannot be read"):
        read_file(tmp_path / ("x" * 300), "record", "")


def test_a_text_with_holes_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.truncate(tmp_path / "a", 1 << 40)
    with pytest.raises(InputError, match="is larger than any of its kind"):
        read_text(tmp_path / "a", "record", "")


def test_whatever_does_not_fit_is_the_fault_of_the_file() -> None:
    for fails in (lambda: {}["a"], lambda: [][1], lambda: None.b, lambda: 1 / 0, lambda: int("x"), lambda: len(3)):  # type: ignore[attr-defined, arg-type]
        with pytest.raises(InputError, match="is damaged: "), as_damaged("record", "a.json", ""):
            fails()
    with pytest.raises(ConfigError), as_damaged("record", "a.json", ""):
        raise ConfigError("option", "--a", "b", "c")
