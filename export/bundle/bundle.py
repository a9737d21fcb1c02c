"""A folder ready to ship: the picture graph, a program that runs it, a page that runs it in a browser, and their card.

Everything is made in memory and checked, written beside its place, and moved there at the end.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from colorpress.core.errors import ConfigError, InputError, printable
from colorpress.core.files import as_machine_error, sha256_bytes, write_bytes
from export.bundle.web_runtime import PACKAGE, VERSION, read_web_runtime
from export.colorizers import OnnxColorizer
from export.picture_graph import COLORIZED_NAME, IMAGE_NAME, SATURATION_NAME, WORK_SIZE_NAME
from export.predictors import OnnxPredictor
from export.sessions import check_model_file

MODEL_NAME, BARE_NAME, SUMS_NAME = "colorizer.onnx", "network.onnx", "SHA256SUMS"
_TEMPLATES = Path(__file__).with_name("templates")
_WEB = Path(__file__).with_name("web")
_WEB_FILES = ("index.html", "app.js", "worker.js", "style.css")
# What every bundle has; a SHA256SUMS that names them all is one of ours.
_ALWAYS = {MODEL_NAME, "colorize.py", "MODEL_CARD.md", "LICENSE-NOTE.md"}


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
    figures: Mapping[str, Any] | None = None,
    force: bool = False,
) -> BundleResult:
    """Write a folder that holds all that is needed to use a picture graph, and checksums of it.

    Args:
        model: the picture graph, `image` uint8 (N, H, W, 1 or 3) to `colorized` uint8 (N, H, W, 3). A file of one's
            own: it is opened and run in this process.
        bare: the network in it alone, L to ab, shipped as well; None: it is not.
        destination: the folder; it appears complete or not at all.
        web: a page that runs the model in a browser, with its runtime, in web/.
        figures: a row of a benchmark (see benchmarks.tables.COLUMNS), and `machine` (text, or what describe_machine
            gives), `date`, `train_photos` and `val_photos` (counts). What is missing or None is "not measured".
        force: replace an earlier bundle, once the new one is complete.
    Raises:
        ConfigError: no such model, or `destination` is a file, or a folder that holds something; with `force`, that
            holds anything but a bundle.
        InputError: the model is no picture graph, or `bare` no network.
        MachineError: the runtime of the page cannot be had, or the folder cannot be written.
    """
    graph = read_picture_graph(model)
    contents = {MODEL_NAME: graph.content, "colorize.py": (_TEMPLATES / "colorize.py").read_bytes()}
    if bare is not None:
        OnnxPredictor(bare, threads=1)  # refuses what is no network
        contents[BARE_NAME] = bare.read_bytes()
    folder = Path(os.path.realpath(destination))
    _check_destination(folder, destination, force)
    if web:
        contents |= {f"web/{name}": (_WEB / name).read_bytes() for name in _WEB_FILES}
        contents |= {f"web/ort/{name}": content for name, content in read_web_runtime().items()}
        contents["web/ort/LICENSE"] = (_TEMPLATES / "onnxruntime-web.LICENSE").read_bytes()
        # Once more, since the folder web/ alone may be served.
        contents[f"web/{MODEL_NAME}"] = graph.content
    contents["MODEL_CARD.md"] = format_card(graph, figures or {}, bare=bare is not None, web=web).encode()
    contents["LICENSE-NOTE.md"] = _format_licences(web).encode()
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
    options = {each.name: numpy_helper.to_array(each).item() for each in model.graph.initializer if each.name in inputs}
    known = {
        "producer": model.producer_name,
        "producer_version": model.producer_version,
        "opset": "".join(str(each.version) for each in model.opset_import if each.domain in ("", "ai.onnx")),
    }
    metadata = {name: text for name, text in known.items() if text}
    metadata |= {entry.key: entry.value for entry in model.metadata_props}
    return PictureGraph(content, options, metadata)


def format_card(graph: PictureGraph, figures: Mapping[str, Any], *, bare: bool, web: bool) -> str:
    """MODEL_CARD.md, with the head that model hubs read; `figures` as in `write_bundle`."""
    size = _format_bytes(len(graph.content))
    files = [(f"`{MODEL_NAME}`", "the model: pictures in, pictures out")]
    files += [(f"`{BARE_NAME}`", "the network in it alone: lightness in, colour out")] if bare else []
    files += [("`colorize.py`", "colours photographs from the command line")]
    files += [("`web/`", "a page that colours photographs in the browser; can be served on its own")] if web else []
    files += [("`LICENSE-NOTE.md`, `SHA256SUMS`", "licences; checksums")]
    return Template((_TEMPLATES / "MODEL_CARD.md").read_text(encoding="utf-8")).substitute(
        model_size=size,
        files="\n".join(f"| {name} | {text} |" for name, text in files),
        browser=_BROWSER if web else _NO_BROWSER,
        contract=_format_contract(graph, bare),
        making=_format_making(graph.metadata),
        figures=_format_figures(figures) if figures else _NO_FIGURES,
        training=_format_training(figures),
        work_size=graph.options.get(WORK_SIZE_NAME, "some"),
    )


_BROWSER = """\
In a browser, serve the folder `web/`, on any web server or with

```
python3 -m http.server 8000 --bind 127.0.0.1 --directory web
```

and open http://localhost:8000. The page needs no other server: photographs are coloured by the browser itself (with
onnxruntime-web) and never leave it. A server that sends `Cross-Origin-Opener-Policy: same-origin` and
`Cross-Origin-Embedder-Policy: require-corp` lets it use several processor threads, and one that compresses
`application/wasm` sends a quarter of the bytes."""
_NO_BROWSER = "In a browser, onnxruntime-web runs the same file; this bundle was made without the page for it."
_NO_FIGURES = "Not measured: this bundle was made without a benchmark. No claim is made about its accuracy or speed."


_OPTIONS = {
    WORK_SIZE_NAME: "int64 scalar, the short side that the network sees, in pixels; smaller pictures are not enlarged",
    SATURATION_NAME: "float32 scalar by which the colours are multiplied, 0 for grey",
}


def _format_contract(graph: PictureGraph, bare: bool) -> str:
    picture = [
        (
            "input",
            f"`{IMAGE_NAME}`",
            "uint8, (N, H, W, 3) sRGB or (N, H, W, 1) grey, upright; any N, H, W of 1 and more",
        ),
        ("output", f"`{COLORIZED_NAME}`", "uint8, (N, H, W, 3) sRGB, of the same size"),
    ]
    for name, default in graph.options.items():
        text = f"{_OPTIONS.get(name, 'a scalar')}; may be left out, then {default:g}"
        picture.insert(-1, ("input", f"`{printable(name)}`", text))
    parts = [f"`{MODEL_NAME}`:", "", *_table(("", "name", "what"), picture)]
    if bare:
        network = [
            ("input", "`L`", "float32, (N, 1, H, W), lightness: L\\* / 100 of CIE Lab (D65), in [0, 1]"),
            ("output", "`ab`", "float32, (N, 2, H, W), chroma: a\\*b\\* / 128, in [-1, 1]"),
        ]
        parts += ["", f"`{BARE_NAME}`:", "", *_table(("", "name", "what"), network)]
    return "\n".join(parts)


_MAKING = {
    "producer": "made by",
    "producer_version": "version",
    "architecture": "architecture",
    "precision": "precision",
    "opset": "ONNX operator set",
    "val_l1": "L1 on validation photographs",
    "l1": "L1, when it was made",
    "retained_colour": "retained colour G, when it was made",
    "checkpoint_sha256": "SHA-256 of the checkpoint",
    "calibration_sha256": "SHA-256 of the calibration photographs",
}


_SAID_ELSEWHERE = ("size_bytes", "work_size", "saturation")


def _format_making(metadata: Mapping[str, str]) -> str:
    """Every entry of the file's metadata: first those of _MAKING, in its order and words, then the others."""
    known = [(text, metadata.get(name, "not recorded")) for name, text in _MAKING.items()]
    others = [(name, text) for name, text in metadata.items() if name not in (*_MAKING, *_SAID_ELSEWHERE)]
    return "\n".join(_table(("what", "value"), [(_cell(name), _cell(text)) for name, text in known + others]))


def _format_figures(figures: Mapping[str, Any]) -> str:
    def show(name: str, pattern: str, missing: str = "not measured") -> str:
        value = figures.get(name)
        absent = value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))
        return missing if absent else pattern.format(value)

    def interval(name: str, pattern: str, what: str) -> str:
        low, high = (show(f"{name}_{end}", pattern, "") for end in ("low", "high"))
        return f" ({what} {low} to {high})" if low and high else ""

    def condition(name: str) -> str:
        return show(name, "{}", "not recorded")

    rows = [
        ("L1", show("l1", "{:.4f}")),
        ("L1 against the original", show("l1_delta_pct", "{:+.2f} %")),
        ("retained colour G", show("retained_colour", "{:.3f}") + interval("retained", "{:.2f}", "95 % interval")),
        ("PSNR", show("psnr_db", "{:.2f} dB")),
        ("SSIM", show("ssim", "{:.4f}")),
        ("colourfulness, as a part of the photographs' own", show("colourfulness_ratio", "{:.2f}")),
        ("time for a call, median", show("p50_ms", "{:.3g} ms")),
        ("time for a call, 9 of 10 below", show("p90_ms", "{:.3g} ms")),
        ("speed against the original", show("speedup", "{:.3g} times") + interval("speedup", "{:.3g}", "rounds")),
        ("memory of the process, peak", show("peak_rss_mb", "{:.0f} MB")),
    ]
    conditions = [
        ("model", f"{condition('model')}, file of {show('size_bytes', '{:,} bytes', 'unrecorded size')}"),
        ("photographs, held out from its training", condition("photos")),
        ("runtime", f"{condition('runtime')}, threads: {condition('threads')}"),
        ("a call", f"height {condition('height')}, width {condition('width')}, batch {condition('batch')}"),
        ("calls timed", condition("runs")),
        ("machine", _describe_machine(figures.get("machine"))),
        ("date", condition("date")),
    ]
    head = _table(("figure", "value"), [(name, _cell(text)) for name, text in rows])
    tail = _table(("condition", "value"), [(name, _cell(text)) for name, text in conditions])
    return "\n".join([*head, "", "Measured so:", "", *tail])


def _describe_machine(machine: Any) -> str:
    if not isinstance(machine, Mapping):
        return str(machine or "not recorded")
    cores = machine.get("cores_usable")
    return f"{machine.get('cpu') or 'not recorded'}{f', {cores} cores' if cores else ''}"


def _format_training(figures: Mapping[str, Any]) -> str:
    counts = [figures.get(name) for name in ("train_photos", "val_photos", "photos")]
    used = "; ".join(
        f"{count} {purpose}"
        for count, purpose in zip(counts, ("to learn from", "to choose by", "to measure with"), strict=True)
        if count is not None
    )
    first = f"Photographs: {used}." if used else "How many photographs were used is not recorded here."
    return f"{first} Which ones they were, and under which terms, is for whoever publishes this folder to say here."


def _format_licences(web: bool) -> str:
    runtime = (
        f"\n**ONNX Runtime Web** (`web/ort/`, {PACKAGE} {VERSION}) is by Microsoft, under the MIT License in\n"
        "`web/ort/LICENSE`.\n"
        if web
        else ""
    )
    template = Template((_TEMPLATES / "LICENSE-NOTE.md").read_text(encoding="utf-8"))
    return template.substitute(web_code=" and the page in `web/`" if web else "", runtime=runtime)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(text: str) -> str:
    """Text of unknown origin on one line of a Markdown table."""
    return re.sub(r"([|<\\`*_\[\]])", r"\\\1", printable(text))


def _format_bytes(size: int) -> str:
    return f"{size / 1e3:.1f} kB" if size < 1_000_000 else f"{size / 1e6:.2f} MB"


def _check_destination(folder: Path, name: Path, force: bool) -> None:
    """Refuse to take the place of anything but, with `force`, a bundle and nothing else."""
    if not folder.exists():
        return
    option = "option --to"
    if not folder.is_dir():
        raise ConfigError(option, name, "is a file", "choose a folder that is not there yet")
    present = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()
    }
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
        lines = sums.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    found = [re.fullmatch(r"[0-9a-f]{64}  (.+)", line) for line in lines]
    return {match[1] for match in found if match}


def _publish(contents: Mapping[str, bytes], folder: Path, name: Path) -> None:
    """Write the files into a folder beside `folder`, which then takes its place."""
    temporary, old = (
        folder.with_name(f".{folder.name[:100]}.{secrets.token_hex(4)}.{what}") for what in ("new", "old")
    )
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
