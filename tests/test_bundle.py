"""Bundles: complete or not there, checked, runnable as shipped; the page's runtime is the pinned one or none."""

from __future__ import annotations

import ast
import base64
import functools
import gzip
import hashlib
import http.server
import io
import re
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import TINY_PLAN, make_network, make_photo
from markdown_it import MarkdownIt
from markdown_it.token import Token
from numpy.typing import NDArray
from PIL import Image

from colorpress.core.config import ExportConfig
from colorpress.core.errors import ConfigError, InputError, MachineError, printable
from colorpress.core.text import format_bytes
from export.bundle import bundle, web_runtime
from export.bundle.bundle import BundleResult, write_bundle
from export.graph import export_onnx
from export.picture_graph import build_picture_graph
from training.checkpoint import Checkpoint

BASE = {"LICENSE-NOTE.md", "MODEL_CARD.md", "SHA256SUMS", "colorize.py", "colorizer.onnx"}
PAGE = {"index.html", "app.js", "worker.js", "style.css", "colorizer.onnx", "ort/LICENSE"}
NOWHERE = "http://127.0.0.1:9"
FIGURES = {
    "model": "auto-int8",
    "runtime": "onnxruntime",
    "l1": 0.07474,
    "l1_delta_pct": -0.56,
    "content_colour": 0.9123,
    "content_low": 0.88,
    "content_high": 0.94,
    "fidelity": 0.6541,
    "chroma_to_truth": 0.555,
    "confirming_kept": 0.905,
    "measure": "content colour C",
    "strength": "best.pt on 204 photographs: L1 21.0 % below grey.",
    "warning": "",
    "retained_colour": 1.0512,
    "retained_low": 1.0,
    "retained_high": 1.11,
    "p50_ms": 0.43,
    "photos": 204,
    "machine": {"cpu": "Some Processor", "cores_usable": 2},
    "date": "2026-11-25",
    "train_photos": 671,
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported tiny network, L to ab."""
    path = tmp_path_factory.mktemp("bare") / "model.onnx"
    export_onnx(Checkpoint(TINY_PLAN, make_network().state_dict(), epoch=1, val_l1=0.1), path, ExportConfig())
    return path


@pytest.fixture(scope="module")
def model(bare: Path) -> Path:
    """The picture graph of `bare`."""
    path = bare.with_name("colorizer.onnx")
    onnx.save(build_picture_graph(onnx.load(bare), work_size=32), path)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty, and a registry that answers nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NPM_CONFIG_REGISTRY", raising=False)
    monkeypatch.setenv("npm_config_registry", NOWHERE)
    return tmp_path / "cache"


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A package that counts as the right one, with short files in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in chain.from_iterable(web_runtime.RUNTIMES.values()):
            content = f"content of {name}".encode()
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    digest = base64.b64encode(hashlib.sha512(buffer.getvalue()).digest()).decode()
    monkeypatch.setattr(web_runtime, "INTEGRITY", f"sha512-{digest}")
    return buffer.getvalue()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Path]:
    """A registry on this machine; answers the folder that holds its package files."""
    folder = tmp_path / "registry" / "onnxruntime-web" / "-"
    folder.mkdir(parents=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "registry"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/")
        yield folder
        server.shutdown()


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def check_sums(folder: Path) -> None:
    subprocess.run(["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=True)
    listed = {line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert listed == names_in(folder) - {"SHA256SUMS"}


def colour_directly(model: Path, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    answer: NDArray[np.uint8] = session.run(None, {"image": pixels.reshape(1, *pixels.shape[:2], -1)})[0][0]
    return answer


def run_shipped(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """colorize.py, in Python's isolated mode and from another folder."""
    command = [sys.executable, "-I", str(folder / "colorize.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False)


def test_a_bundle_is_complete_and_its_checksums_hold(model: Path, bare: Path, tmp_path: Path) -> None:
    result = write_bundle(model, bare, tmp_path / "new" / "ship", web=False)
    folder = tmp_path / "new" / "ship"
    assert names_in(folder) == BASE | {"network.onnx"} == set(result.files)
    assert result == BundleResult(folder, result.files, sum(path.stat().st_size for path in folder.iterdir()), None)
    assert (folder / "colorizer.onnx").read_bytes() == model.read_bytes()
    assert (folder / "network.onnx").read_bytes() == bare.read_bytes()
    check_sums(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["ship"]
    assert names_in(write_bundle(model, None, tmp_path / "less", web=False).folder) == BASE


def test_the_shipped_program_gives_the_models_own_pixels(model: Path, tmp_path: Path) -> None:
    folder = write_bundle(model, None, tmp_path / "ship", web=False).folder
    photo = make_photo(3, 50, 41)
    grey = photo.convert("L")
    orientation = Image.Exif()
    orientation[0x0112] = 6
    photo.save(tmp_path / "colour.png")
    photo.save(tmp_path / "turned.png", exif=orientation)
    grey.save(tmp_path / "grey.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    ran = run_shipped(folder, *(tmp_path / f"{name}.png" for name in ("colour", "turned", "grey", "deep")), "-o", "out")
    assert ran.returncode == 0, ran.stderr
    expected = {
        "colour": np.asarray(photo),
        "turned": np.asarray(photo.transpose(Image.Transpose.ROTATE_270)),
        "grey": np.asarray(grey),
        "deep": np.asarray(grey),
    }
    for name, pixels in expected.items():
        answer = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        np.testing.assert_array_equal(answer, colour_directly(model, pixels), err_msg=name)
    assert np.ptp(answer.astype(int), axis=2).max() > 3, "the tiny network answers some colour, so equality means much"


def test_the_shipped_program_goes_on_after_a_bad_file_and_writes_over_nothing(model: Path, tmp_path: Path) -> None:
    folder = write_bundle(model, None, tmp_path / "ship", web=False).folder
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n but no more")
    make_photo(0).save(tmp_path / "good.png")
    before = (tmp_path / "good.png").read_bytes()
    photos = (tmp_path / "bad.png", tmp_path / "good.png")
    ran = run_shipped(folder, *photos, "-o", tmp_path / "out", "--work-size", "16", "--saturation", "0")
    assert ran.returncode == 1
    assert "bad.png" in ran.stderr
    assert names_in(tmp_path / "out") == {"good.png"}
    assert np.ptp(np.asarray(Image.open(tmp_path / "out" / "good.png")).astype(int), axis=2).max() <= 1, "no saturation"
    ran = run_shipped(folder, tmp_path / "good.png", "-o", tmp_path)
    assert ran.returncode == 1
    assert (tmp_path / "good.png").read_bytes() == before


def test_the_shipped_program_needs_three_packages_and_is_short() -> None:
    text = (Path(bundle.__file__).with_name("templates") / "colorize.py").read_text()
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    assert found - set(sys.stdlib_module_names) == {"onnxruntime", "numpy", "PIL"}
    assert len(text.splitlines()) < 70


def test_what_is_there_is_never_taken_for_a_bundle(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write_bundle(model, None, folder, web=False)  # an empty folder is as good as none
    with pytest.raises(ConfigError, match="not empty"):
        write_bundle(model, None, folder, web=False)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        write_bundle(model, None, folder, web=False, force=True)
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  notes.txt\n")
    with pytest.raises(ConfigError, match="no bundle"):
        write_bundle(model, None, folder, web=False, force=True)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ConfigError, match="no bundle"):
        write_bundle(model, None, folder, web=False, force=True)
    with pytest.raises(ConfigError, match="is a file"):
        write_bundle(model, None, folder / "notes.txt", web=False, force=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_force_replaces_a_bundle_through_a_link_too(model: Path, bare: Path, tmp_path: Path) -> None:
    write_bundle(model, bare, tmp_path / "ship", web=False)
    (tmp_path / "link").symlink_to("ship")
    write_bundle(model, None, tmp_path / "link", web=False, force=True)
    assert names_in(tmp_path / "ship") == BASE
    assert (tmp_path / "link").is_symlink()
    check_sums(tmp_path / "ship")
    assert {path.name for path in tmp_path.iterdir()} == {"ship", "link"}


@pytest.mark.parametrize("when", ["writing", "moving"])
def test_a_failure_leaves_the_old_bundle(
    model: Path, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    folder = write_bundle(model, bare, tmp_path / "ship", web=False).folder
    write, rename = bundle.write_bytes, Path.rename

    def fail_to_write(path: Path, content: bytes) -> Path:
        if path.name == "MODEL_CARD.md":
            raise MachineError("file", path, "disk full", "free some space")
        return write(path, content)

    def fail_to_rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".new"):
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    if when == "writing":
        monkeypatch.setattr(bundle, "write_bytes", fail_to_write)
    else:
        monkeypatch.setattr(Path, "rename", fail_to_rename)
    with pytest.raises(MachineError):
        write_bundle(model, None, folder, web=False, force=True)
    assert names_in(folder) == BASE | {"network.onnx"}
    assert [path.name for path in tmp_path.iterdir()] == ["ship"]


def test_what_is_no_picture_graph_is_refused(model: Path, bare: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model at all")
    short = onnx.load(model)
    short.graph.node[-1].input[2] = short.graph.node[-1].input[1]  # answers no rows
    onnx.save(short, tmp_path / "short.onnx")
    for path, network, why in (
        (bare, None, "expected image and colorized"),
        (tmp_path / "text.onnx", None, "is no valid ONNX model"),
        (tmp_path / "short.onnx", None, r"answers \(0, 8, 3\)"),
        (model, model, "its input is image"),
    ):
        with pytest.raises(InputError, match=why):
            write_bundle(path, network, tmp_path / "ship", web=False)
    with pytest.raises(ConfigError, match="no such file"):
        write_bundle(tmp_path / "none.onnx", None, tmp_path / "ship", web=False)
    assert not (tmp_path / "ship").exists()


def test_the_card_has_the_figures_and_says_what_was_not_measured(model: Path, bare: Path, tmp_path: Path) -> None:
    folder = write_bundle(model, bare, tmp_path / "ship", web=False, figures=FIGURES).folder
    card = (folder / "MODEL_CARD.md").read_text()
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    for line in ("license: other", "pipeline_tag: image-to-image", "library_name: onnx", "tags:"):
        assert line in head.splitlines()
    for row in (
        "| the measure that decides | content colour C |",
        "| content colour C | 0.912 (95 % interval 0.88 to 0.94) |",
        "| fidelity F | 0.654 |",
        "| what decides, on the half of the photographs that has no say in what is recommended | 0.905 |",
        "| what decides, on the half that chooses | not measured |",
        "| retained colour G | 1.051 (95 % interval 1.00 to 1.11) |",
        "| L1 near the edges of colours | not measured |",
        "| chroma, as a part of the photographs' own | 0.56 |",
        "How strong the original is: best.pt on 204 photographs: L1 21.0 % below grey.",
        "| L1 | 0.0747 |",
        "| L1 against the original | -0.56 % |",
        "| time for a call, median | 0.43 ms |",
        "| time for a call, 9 of 10 below | not measured |",
        "| speed against the original | not measured |",
        "| machine | Some Processor, 2 cores |",
        "| calls timed | not recorded |",
        "| model | auto-int8, file of unrecorded size |",
        "| ONNX operator set | 18 |",
        "| SHA-256 of the checkpoint | not recorded |",
        "| made by | colorpress |",
    ):
        assert row in body.splitlines()
    assert "671 to learn from; 204 to measure with." in body
    assert "`work_size`, 32 pixels" in body
    assert "`ab`" in body
    assert "$" not in card


def test_the_card_warns_of_a_weak_original_and_keeps_figures_of_an_older_file(model: Path, tmp_path: Path) -> None:
    old = onnx.load(model)
    known = {entry.key: entry.value for entry in old.metadata_props}
    onnx.helper.set_model_props(old, {**known, "retained_colour": "1.0717", "l1": "0.075322"})
    onnx.save(old, tmp_path / "old.onnx")
    figures = {**FIGURES, "warning": "That measures tint."}
    folder = write_bundle(tmp_path / "old.onnx", None, tmp_path / "ship", web=False, figures=figures).folder
    lines = (folder / "MODEL_CARD.md").read_text().splitlines()
    assert "**Beware:** That measures tint." in lines
    assert (
        "| retained colour G, when it was made | 1.0717 |" in lines and "| L1, when it was made | 0.075322 |" in lines
    )
    assert "| content colour C, when it was made | not recorded |" in lines
    assert sum(line.startswith("| retained") for line in lines) == 2  # in the file, and in the benchmark


def test_the_card_without_figures_claims_nothing(model: Path, tmp_path: Path) -> None:
    card = (write_bundle(model, None, tmp_path / "ship", web=False).folder / "MODEL_CARD.md").read_text()
    assert "Not measured" in card and "How strong the original is was not measured." in card and "Beware" not in card
    assert "`ab`" not in card
    assert "made without the page" in card


def test_metadata_of_any_kind_stays_in_its_cell(model: Path, tmp_path: Path) -> None:
    odd = onnx.load(model)
    del odd.metadata_props[:]
    onnx.helper.set_model_props(odd, {"precision": "int8 | <b>\n# head", "mine": "a", "checkpoint_sha256": "ab" * 32})
    onnx.save(odd, tmp_path / "odd.onnx")
    folder = write_bundle(tmp_path / "odd.onnx", None, tmp_path / "ship", web=False).folder
    lines = (folder / "MODEL_CARD.md").read_text().splitlines()
    assert r"| precision | int8 \| \<b\>\\n# head |" in lines
    assert "| mine | a |" in lines
    assert f"| SHA-256 of the checkpoint | {'ab' * 32} |" in lines


HOSTILE_TEXTS = (
    "x` | <img src=x onerror=alert(1)>",
    "[a](javascript:alert(1)) ![b](http://e.test/c.png) <http://e.test>",
    "\n\n# head\n\n<script>alert(1)</script>",
    "**bold** ~~gone~~ $x$ @someone http://e.test www.e.test &lt;b&gt; \x1b[31m \u202e {{ 7 * 7 }} {% x %}",
)


def test_no_name_or_text_of_a_model_becomes_markup(model: Path, tmp_path: Path) -> None:
    odd = onnx.load(model)
    odd.producer_name = odd.producer_version = HOSTILE_TEXTS[0]
    onnx.helper.set_model_props(odd, {text: text for text in HOSTILE_TEXTS})
    for text in HOSTILE_TEXTS:
        odd.graph.input.append(onnx.helper.make_tensor_value_info(text, onnx.TensorProto.FLOAT, []))
        odd.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.5, np.float32), text))
    # Neither of these is an option that a card can tell of.
    for name, value in (("several", np.zeros(2, np.float32)), ("words", np.array(b"abc", object))):
        kind = onnx.TensorProto.FLOAT if name == "several" else onnx.TensorProto.STRING
        odd.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, value.shape))
        odd.graph.initializer.append(onnx.helper.make_tensor(name, kind, value.shape, value.ravel().tolist()))
    onnx.save(odd, tmp_path / "odd.onnx")
    figures = {**FIGURES, **dict.fromkeys(("machine", "measure", "strength", "warning", "model"), HOSTILE_TEXTS[1])}
    cards = []
    for path, given in ((model, FIGURES), (tmp_path / "odd.onnx", figures)):
        write_bundle(path, None, tmp_path / path.stem, web=False, figures=given)
        cards.append((tmp_path / path.stem / "MODEL_CARD.md").read_text().partition("\n---\n")[2])
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    plain, found = (Counter(token.type for token in _walk(parser.parse(card))) for card in cards)
    # "Beware:" is set in bold where there is a warning; all else that is added are cells, and text in them.
    added = {"tr_open", "tr_close", "td_open", "td_close", "inline", "text", "text_special"}
    added |= {"strong_open", "strong_close", "paragraph_open", "paragraph_close"}
    assert {kind: count for kind, count in found.items() if kind not in added} == {
        kind: count for kind, count in plain.items() if kind not in added
    }
    assert found["strong_open"] == plain["strong_open"] + 1
    text = "".join(token.content for token in _walk(parser.parse(cards[1])) if token.type.startswith("text"))
    for each in HOSTILE_TEXTS:
        assert text.count(printable(each)) >= 2
    for mark in ("several", "http://e", "www.e", "\x1b", "\u202e", " $", " @"):
        assert mark not in cards[1]


def _walk(tokens: Sequence[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _walk(token.children or [])


def test_the_page_holds_its_runtimes_and_model(model: Path, tmp_path: Path, registry: Path, package: bytes) -> None:
    (registry / "onnxruntime-web-1.30.0.tgz").write_bytes(package)
    result = write_bundle(model, None, tmp_path / "ship", web=True)
    web, packed = result.folder / "web", {}
    for runtime, names in web_runtime.RUNTIMES.items():
        loader, program = names
        assert (web / "ort" / loader).read_text() == f"content of {loader}"
        assert gzip.decompress((web / "ort" / f"{program}.gz").read_bytes()).decode() == f"content of {program}"
        packed[runtime] = {f"ort/{loader}", f"ort/{program}.gz"}
    assert names_in(web) == PAGE | packed["wasm"] | packed["webgpu"]
    assert result.web_runtime == web_runtime.VERSION
    assert (web / "colorizer.onnx").read_bytes() == model.read_bytes()
    assert not any(path.is_symlink() for path in web.rglob("*"))
    assert "Microsoft" in (web / "ort" / "LICENSE").read_text()
    assert "onnxruntime-web 1.30.0" in (result.folder / "LICENSE-NOTE.md").read_text()
    card = " ".join((result.folder / "MODEL_CARD.md").read_text().split())
    loads = {
        each: sum((web / name).stat().st_size for name in (PAGE - {"ort/LICENSE"}) | packed[each]) for each in packed
    }
    assert f"A visitor loads {format_bytes(loads['wasm'])}, with WebGPU {format_bytes(loads['webgpu'])}; " in card
    check_sums(result.folder)


def test_the_page_names_only_files_that_are_there(model: Path, tmp_path: Path, registry: Path, package: bytes) -> None:
    (registry / "onnxruntime-web-1.30.0.tgz").write_bytes(package)
    web = write_bundle(model, None, tmp_path / "ship", web=True).folder / "web"
    page, app, worker = ((web / name).read_text() for name in ("index.html", "app.js", "worker.js"))
    named = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page) + re.findall(r'new URL\("([^"]+)"', app)
    named += re.findall(r'(?:loader|program|MODEL)(?:: | = )"([^"]+)"', worker)
    assert set(named) == names_in(web) - {"index.html", "ort/LICENSE"}
    for text in (page, app, worker):
        assert not re.findall(r"(?:https?:)?//(?!localhost)[a-z0-9]+\.", text), "nothing from elsewhere"
    used = set(re.findall(r"page\.(\w+)", app))
    assert used <= set(re.findall(r'id="(\w+)"', page))


def test_without_network_there_is_no_page_and_no_half_bundle(model: Path, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(MachineError, match="failed") as raised:
        write_bundle(model, None, tmp_path / "ship", web=True)
    assert "--no-web" in raised.value.hint
    assert NOWHERE in str(raised.value)
    assert not (tmp_path / "ship").exists()
    assert names_in(tmp_path) == set()


def test_a_package_with_another_hash_is_neither_used_nor_kept(
    model: Path, tmp_path: Path, registry: Path, cache: Path, package: bytes
) -> None:
    (registry / "onnxruntime-web-1.30.0.tgz").write_bytes(package + b"!")
    with pytest.raises(MachineError, match="SHA-512"):
        write_bundle(model, None, tmp_path / "ship", web=True)
    assert not (tmp_path / "ship").exists()
    assert not cache.exists()


def test_a_package_is_downloaded_once(
    model: Path, tmp_path: Path, registry: Path, cache: Path, package: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = registry / "onnxruntime-web-1.30.0.tgz"
    source.write_bytes(package)
    write_bundle(model, None, tmp_path / "first", web=True)
    assert names_in(cache) == {"colorpress/onnxruntime-web-1.30.0.tgz"}
    # A copy that went bad is replaced.
    (cache / "colorpress" / "onnxruntime-web-1.30.0.tgz").write_bytes(package[:100])
    write_bundle(model, None, tmp_path / "second", web=True)
    monkeypatch.setenv("npm_config_registry", NOWHERE)
    third = write_bundle(model, None, tmp_path / "third", web=True).folder
    assert (third / "SHA256SUMS").read_bytes() == (tmp_path / "first" / "SHA256SUMS").read_bytes()


def test_a_registry_must_be_on_the_web(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", f"file://{cache}")
    with pytest.raises(MachineError, match="no web address"):
        web_runtime.read_web_runtimes()
