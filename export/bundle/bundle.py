"""A folder ready to ship: the picture graph, a program that runs it, a page that runs it in a browser, and their card.

Everything is made in memory and checked, written beside its place, and moved there at the end.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from jinja2 import Environment, StrictUndefined
from onnx import numpy_helper

from colorpress.core.errors import ConfigError, InputError, as_machine_error, printable
from colorpress.core.files import sha256_bytes, write_bytes
from colorpress.core.text import format_bytes
from export.bundle.web_runtime import PACKAGE, VERSION, read_web_runtimes
from export.colorizers import OnnxColorizer, opset_of
from export.metadata_figures import MEASURED, NOT_MEASURED
from export.onnx_probe import refuse_hostile
from export.predictors import OnnxPredictor
from export.sessions import check_model_file

MODEL_NAME, BARE_NAME, SUMS_NAME = "colorizer.onnx", "network.onnx", "SHA256SUMS"
# The same without control flow, see `colorpress deploy --plain`.
PLAIN_NAME = "colorizer-plain.onnx"
_TEMPLATES = Path(__file__).with_name("templates")
_WEB = Path(__file__).with_name("web")
_WEB_FILES = ("index.html", "app.js", "worker.js", "style.css")
# What every bundle has; a SHA256SUMS that names them all is one of ours.
_ALWAYS = {MODEL_NAME, "colorize.py", "MODEL_CARD.md", "LICENSE-NOTE.md"}

# What has a meaning in some Markdown: of CommonMark, tables, struck text, formulas, mentions and bare addresses.
_MEANING = r"([|<>&\\`*_\[\]~$@]|(?<=[A-Za-z]):(?=//)|(?<=www)\.)"


@dataclass(frozen=True)
class BundleResult:
    """A finished bundle.

    Attributes:
        folder: where it is.
        files: their names relative to it, sorted; SHA256SUMS is one of them.
        size_bytes: of all files.
        web_runtime: version of onnxruntime-web in it; None without a page.
    """

    folder: Path
    files: tuple[str, ...]
    size_bytes: int
    web_runtime: str | None


@dataclass(frozen=True)
class PictureGraph:
    """What a picture graph says about itself.

    Attributes:
        content: the file.
        options: the inputs that may be left out, with what is taken then, such as work_size.
        metadata: producer, producer_version, opset and metadata_props, which win.
    """

    content: bytes
    options: dict[str, int | float]
    metadata: dict[str, str]


def write_bundle(
    model: Path,
    bare: Path | None,
    destination: Path,
    *,
    web: bool,
    plain: Path | None = None,
    figures: Mapping[str, Any] | None = None,
    force: bool = False,
) -> BundleResult:
    """Write a folder that holds all that is needed to use a picture graph, and checksums of it.

    Args:
        model: the picture graph, `image` uint8 (N, H, W, 1 or 3) to `colorized` uint8 (N, H, W, 3).
        bare: the network in it alone, L to ab, shipped as well; None: it is not.
        destination: the folder; it appears complete or not at all.
        plain: the picture graph without control flow, shipped as well; None: it is not.
        web: a page that runs the model in a browser, with its runtime, in web/.
        figures: a row of a benchmark (see benchmarks.rows.COLUMNS), and `machine` (text, or what describe_machine
            gives), `date`, `train_photos` and `val_photos` (counts), and in words `measure` (what decides), `strength`
            (of the original) and `warning` (what that means). What is missing or None is "not measured".
        force: replace an earlier bundle, once the new one is complete.
    Raises:
        ConfigError: no such model, or `destination` is a file, or a folder that holds something; with `force`, that
            holds anything but a bundle.
        InputError: the model is hostile or no picture graph, or `bare` no network.
        MachineError: the runtime of the page cannot be had, or the folder cannot be written.
    """
    refuse_hostile(model)
    graph = read_picture_graph(model)
    contents = {MODEL_NAME: graph.content, "colorize.py": (_TEMPLATES / "colorize.py").read_bytes()}
    if bare is not None:
        refuse_hostile(bare)
        OnnxPredictor(bare, threads=1)  # refuses what is no network
        contents[BARE_NAME] = bare.read_bytes()
    if plain is not None:
        refuse_hostile(plain)
        OnnxColorizer(plain, threads=1)  # refuses what is no picture graph
        contents[PLAIN_NAME] = plain.read_bytes()
    folder = Path(os.path.realpath(destination))
    _check_destination(folder, destination, force)
    loads = _add_page(contents, graph.content) if web else {}
    card = format_card(graph, figures or {}, bare=bare is not None, plain=plain is not None, loads=loads)
    contents["MODEL_CARD.md"] = card.encode()
    contents["LICENSE-NOTE.md"] = _fill("LICENSE-NOTE.md", web=web, package=PACKAGE, version=VERSION).encode()
    sums = [f"{sha256_bytes(content)}  {name}\n" for name, content in sorted(contents.items())]
    contents[SUMS_NAME] = "".join(sums).encode()
    _publish(contents, folder, destination)
    size = sum(map(len, contents.values()))
    return BundleResult(destination, tuple(sorted(contents)), size, VERSION if web else None)


def read_picture_graph(path: Path) -> PictureGraph:
    """Read a picture graph of one's own and colour two tiny pictures with it, a grey one and one of three channels.

    Raises:
        ConfigError: no such file.
        InputError: it is no ONNX file, or does not take and give pictures.
    """
    check_model_file(path)
    content = path.read_bytes()
    colorize = OnnxColorizer(path, content, threads=1)
    for channels in (1, 3):
        answer = colorize(np.full((9, 7, channels), 90, np.uint8))
        if answer.shape != (9, 7, 3):
            why = f"answers {answer.shape} to a picture of 9 x 7 pixels and {channels} channels"
            raise InputError("model", path, why, "give a colorizer.onnx that colorpress wrote")
    model = onnx.load_model_from_string(content)
    inputs = {each.name for each in model.graph.input}
    defaults = [each for each in model.graph.initializer if each.name in inputs and not each.dims]
    values = {each.name: numpy_helper.to_array(each) for each in defaults}
    options = {name: value.item() for name, value in values.items() if value.dtype.kind in "iuf"}
    known = {
        "producer": model.producer_name,
        "producer_version": model.producer_version,
        "opset": opset_of(model),
    }
    metadata = {name: str(value) for name, value in known.items() if value}
    metadata |= {entry.key: entry.value for entry in model.metadata_props}
    return PictureGraph(content, options, metadata)


def _add_page(contents: dict[str, bytes], model: bytes) -> dict[str, int]:
    """Add the files of web/, and answer what a visitor loads of them, in bytes, by the runtime that is used."""
    # With the model once more, since the folder web/ alone may be served.
    page = {name: (_WEB / name).read_bytes() for name in _WEB_FILES} | {MODEL_NAME: model}
    contents |= {f"web/{name}": content for name, content in page.items()}
    contents["web/ort/LICENSE"] = (_TEMPLATES / "onnxruntime-web.LICENSE").read_bytes()
    runtimes = read_web_runtimes()
    for files in runtimes.values():
        contents |= {f"web/ort/{name}": content for name, content in files.items()}
    return {name: sum(map(len, (*page.values(), *files.values()))) for name, files in runtimes.items()}


def format_card(
    graph: PictureGraph, figures: Mapping[str, Any], *, bare: bool, plain: bool, loads: Mapping[str, int]
) -> str:
    """MODEL_CARD.md, with the head that model hubs read; `figures` as in `write_bundle`.

    `bare` and `plain` say whether those files are there. `loads` is what a visitor of the page loads, in bytes by
    runtime; empty where there is no page.
    """

    def show(name: str, pattern: str = "{}", missing: str = NOT_MEASURED) -> str:
        value = figures.get(name)
        is_absent = value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))
        return missing if is_absent else pattern.format(value)

    def interval(name: str, pattern: str, what: str) -> str:
        low, high = (show(f"{name}_{end}", pattern, "") for end in ("low", "high"))
        return f" ({what} {low} to {high})" if low and high else ""

    size, noted = format_bytes(len(graph.content)), partial(show, missing="not recorded")
    given = {"graph": graph, "measured": MEASURED, "size": size, "bare": bare, "plain": plain, "figures": figures}
    given["loads"] = {name: format_bytes(count) for name, count in loads.items()}
    return _fill("MODEL_CARD.md", **given, show=show, interval=interval, noted=noted)


def _fill(template: str, **values: Any) -> str:
    environment = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=_as_text,  # whatever a template is given, names and metadata of a model among them
    )
    environment.filters["code"] = _as_code
    return environment.from_string((_TEMPLATES / template).read_text(encoding="utf-8")).render(values)


class _Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def _as_text(value: object) -> str:
    """What reads in Markdown, in a table too, as the value itself on one line: no markup, no link, no mention."""
    return value if isinstance(value, _Markdown) else re.sub(_MEANING, r"\\\1", printable(str(value)))


def _as_code(name: str) -> _Markdown:
    """A name set as code; as text where it is none that a programmer would choose."""
    return _Markdown(f"`{name}`" if re.fullmatch(r"[A-Za-z0-9_.]{1,80}", name) else _as_text(name))


def _check_destination(folder: Path, name: Path, force: bool) -> None:
    """Refuse to take the place of anything but, with `force`, a bundle and nothing else."""
    if not folder.exists():
        return
    option = "option --to"
    if not folder.is_dir():
        raise ConfigError(option, name, "is a file", "choose a folder that is not there yet")
    inside = (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    present = {path.relative_to(folder).as_posix() for path in inside}
    if not present:
        return
    if not force:
        raise ConfigError(option, name, "is there already, and not empty", "choose another folder, or give --force")
    listed = _listed_files(folder / SUMS_NAME)
    if not listed >= _ALWAYS:
        raise ConfigError(option, name, "holds something that is no bundle of colorpress", "choose another folder")
    if foreign := sorted(present - listed - {SUMS_NAME}):
        why = f"holds '{foreign[0]}', which is no part of the bundle and would be lost"
        raise ConfigError(option, name, why, "move it away, or choose another folder")


def _listed_files(sums: Path) -> set[str]:
    """The names in a SHA256SUMS; none where it is no such file."""
    try:
        return set(re.findall(r"^[0-9a-f]{64}  (.+)$", sums.read_text(encoding="utf-8"), re.MULTILINE))
    except (OSError, UnicodeDecodeError):
        return set()


def _publish(contents: Mapping[str, bytes], folder: Path, name: Path) -> None:
    """Write the files into a folder beside `folder`, which then takes its place."""
    hidden = f".{folder.name[:100]}.{secrets.token_hex(4)}"
    temporary, old = folder.with_name(f"{hidden}.new"), folder.with_name(f"{hidden}.old")
    try:
        for path, content in contents.items():
            write_bytes(temporary / path, content)
        # An empty folder is replaced by the move itself.
        if folder.exists() and any(folder.iterdir()):
            folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    except OSError as error:
        raise as_machine_error(error, name) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
