"""The page of a bundle in a real browser: its pixels are Python's, and nothing leaves it."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import TINY_PLAN, make_network
from numpy.typing import NDArray
from PIL import Image

from colorpress.core.config import ExportConfig
from colorpress.core.errors import MachineError
from export.bundle.bundle import write_bundle
from export.graph import export_onnx
from export.picture_graph import build_picture_graph
from training.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

# Of 255. The same graph, but other kernels: float sums in another order, which rounding to 8 bits can show.
TOLERANCE = 1
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, with or without the headers that allow threads, and notes the names of what was asked for."""

    def __init__(
        self, *arguments: Any, headers: dict[str, str], unpacks: bool, asked: list[str] | None, **options: Any
    ) -> None:
        self.more_headers, self.unpacks, self.asked = headers, unpacks, asked
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        if self.asked is not None:
            self.asked.append(self.path.lstrip("/").partition("?")[0] or "index.html")
        super().do_GET()

    def end_headers(self) -> None:
        for name, value in self.more_headers.items():
            self.send_header(name, value)
        if self.unpacks and self.path.endswith(".gz"):
            self.send_header("Content-Encoding", "gzip")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(
    folder: Path, headers: dict[str, str], *, unpacks: bool = False, asked: list[str] | None = None
) -> Iterator[str]:
    """The address of a folder that is served on this machine.

    With `unpacks` gzip files are said to be compressed answers, as some servers do; names asked for go into `asked`.
    """
    handler = functools.partial(Handler, directory=str(folder), headers=headers, unpacks=unpacks, asked=asked)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a page around a tiny network."""
    folder = tmp_path_factory.mktemp("web")
    checkpoint = Checkpoint(TINY_PLAN, make_network().state_dict(), epoch=1, val_l1=0.1)
    export_onnx(checkpoint, folder / "model.onnx", ExportConfig())
    onnx.save(build_picture_graph(onnx.load(folder / "model.onnx")), folder / "colorizer.onnx")
    try:
        return write_bundle(folder / "colorizer.onnx", None, folder / "bundle", web=True).folder
    except MachineError as error:
        pytest.skip(f"onnxruntime-web cannot be had: {error}")


@pytest.fixture(scope="module", params=[{}, ISOLATED], ids=["one-thread", "isolated"])
def address(request: pytest.FixtureRequest, bundle: Path) -> Iterator[str]:
    """The folder web/ alone, on its server."""
    with served(bundle / "web", request.param) as where:
        yield where


@pytest.fixture(scope="module")
def browser(browser: Any) -> Any:
    """The browser, patient: a page that asks to be isolated gets another process, and is empty for a moment."""
    browser.set_script_timeout(300)
    browser.command_executor.client_config.timeout = 320
    browser.implicitly_wait(10)
    return browser


def colour_directly(bundle: Path, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(bundle / "colorizer.onnx", settings, providers=["CPUExecutionProvider"])
    answer: NDArray[np.uint8] = session.run(None, {"image": pixels.reshape(1, *pixels.shape[:2], -1)})[0][0]
    return answer.astype(np.int64)


def choose(browser: Any, path: Path) -> None:
    """Give the page a file as a person does, and wait until it is coloured or refused."""
    browser.find_element("id", "file").send_keys(str(path))
    wait_for(browser, "document.body.dataset.state === 'idle'")


def wait_for(browser: Any, condition: str) -> None:
    browser.execute_async_script(
        f"const done = arguments[0]; const look = () => {condition} ? done() : setTimeout(look, 20); look();"
    )


def read_canvas(browser: Any, name: str) -> NDArray[np.int64]:
    """The pixels of a canvas as the page would save them in a PNG, (H, W, 3)."""
    url = browser.execute_async_script(
        "const done = arguments[1]; document.getElementById(arguments[0]).toBlob((blob) => {"
        "const reader = new FileReader(); reader.onload = () => done(reader.result); reader.readAsDataURL(blob); });",
        name,
    )
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    return np.asarray(picture.convert("RGB")).astype(np.int64)


def text_of(browser: Any, name: str) -> str:
    return str(browser.find_element("id", name).text)


def sample(name: str) -> NDArray[np.uint8]:
    import skimage

    return np.asarray(Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB"))


def test_the_page_colours_as_python_does(
    browser: Any, address: str, bundle: Path, tmp_path: Path, record_property: Any
) -> None:
    browser.get(address)
    wait_for(browser, "document.body.dataset.loadMilliseconds")
    record_property("load_ms", browser.execute_script("return +document.body.dataset.loadMilliseconds"))
    colour, grey = sample("chelsea.png"), np.asarray(Image.fromarray(sample("coffee.png")).convert("L"))
    for name, pixels in (("chelsea", colour), ("coffee", grey), ("again", colour[:101, :67])):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        choose(browser, tmp_path / f"{name}.png")
        assert text_of(browser, "error") == ""
        assert f"{name}.png: {pixels.shape[1]} \N{MULTIPLICATION SIGN} {pixels.shape[0]} pixels" in text_of(
            browser, "facts"
        )
        before, after = read_canvas(browser, "before"), read_canvas(browser, "after")
        np.testing.assert_array_equal(before, pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=2))
        difference = np.abs(after - colour_directly(bundle, pixels))
        record_property(f"{name}_facts", text_of(browser, "facts"))
        record_property(f"{name}_difference", f"max {difference.max()}, mean {difference.mean():.5f}")
        assert difference.max() <= TOLERANCE
        assert np.ptp(after, axis=2).max() > 3, "there is colour in the answer"
    threads = 1 if "on 1 processor thread (WebAssembly)" in text_of(browser, "versions") else 2
    isolated = browser.execute_script("return crossOriginIsolated && navigator.hardwareConcurrency > 1")
    assert (threads > 1) == isolated
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_orientation_is_applied(browser: Any, address: str, bundle: Path, tmp_path: Path) -> None:
    orientation = Image.Exif()
    orientation[0x0112] = 6
    pixels = sample("chelsea.png")[:120, :200]
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=orientation)
    browser.get(address)
    choose(browser, tmp_path / "turned.png")
    np.testing.assert_array_equal(read_canvas(browser, "before"), np.rot90(pixels, 3))
    assert (
        np.abs(read_canvas(browser, "after") - colour_directly(bundle, np.rot90(pixels, 3).copy())).max() <= TOLERANCE
    )


def test_a_file_that_is_no_picture_is_refused_and_the_next_is_coloured(
    browser: Any, address: str, tmp_path: Path
) -> None:
    (tmp_path / "letter.jpg").write_text("Dear reader")
    Image.fromarray(sample("coffee.png")[:50, :50]).save(tmp_path / "good.png")
    browser.get(address)
    choose(browser, tmp_path / "letter.jpg")
    assert text_of(browser, "error").startswith("This browser cannot read “letter.jpg” as a picture.")
    assert not browser.find_element("id", "result").is_displayed()
    choose(browser, tmp_path / "good.png")
    assert text_of(browser, "error") == ""
    assert browser.find_element("id", "result").is_displayed()


def test_the_slider_follows_keyboard_and_pointer(browser: Any, address: str, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    Image.fromarray(sample("coffee.png")).save(tmp_path / "coffee.png")
    browser.get(address)
    choose(browser, tmp_path / "coffee.png")
    slider, divider = browser.find_element("id", "slider"), browser.find_element("css selector", ".divider")
    left, width = slider.rect["x"], slider.rect["width"]

    def shown() -> float:
        return float((divider.rect["x"] + divider.rect["width"] / 2 - left) / width)

    assert abs(shown() - 0.5) < 0.01
    slider.send_keys(Keys.ARROW_LEFT * 10)
    assert abs(shown() - 0.4) < 0.01
    slider.send_keys(Keys.END)
    assert abs(shown() - 1.0) < 0.01
    chain = ActionChains(browser).move_to_element(slider).click_and_hold()
    chain.move_by_offset(-int(width / 4), 0).release().perform()
    assert abs(shown() - 0.25) < 0.02
    assert "25 % before" in slider.get_attribute("aria-valuetext")


def test_nothing_can_leave_the_page(browser: Any, bundle: Path, tmp_path: Path) -> None:
    """The policy holds on the page and in its worker, which would have none had it been started from its file."""
    web = tmp_path / "web"
    shutil.copytree(bundle / "web", web)
    (tmp_path / "elsewhere").mkdir()
    with served(tmp_path / "elsewhere", {}) as elsewhere, served(web, {}) as address:
        probe = f"fetch({json.dumps(elsewhere)}, {{mode: 'no-cors'}}).then(() => 'sent', () => 'refused')"
        with (web / "worker.js").open("a") as stream:
            stream.write(f"{probe}.then((text) => postMessage({{kind: 'refused', text}}));\n")
        browser.get(address)
        assert browser.execute_async_script(f"{probe}.then(arguments[0])") == "refused"
        wait_for(browser, "['sent', 'refused'].includes(document.getElementById('error').textContent)")
        assert text_of(browser, "error") == "refused"
    browser.get_log("browser")  # the refusals just made are in it


def test_dropped_and_pasted_photographs_are_taken_and_the_last_one_stays(browser: Any, address: str) -> None:
    browser.get(address)
    give = """
        const [kind, side, done] = [arguments[0], arguments[1], arguments[2]];
        const canvas = new OffscreenCanvas(side, side);
        canvas.getContext("2d").fillRect(0, 0, side, side / 2);
        canvas.convertToBlob().then((blob) => {
          const data = new DataTransfer();
          data.items.add(new File([blob], `${kind}${side}.png`, { type: "image/png" }));
          const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
          document.body.dispatchEvent(event);
          done();
        });"""
    for kind in ("drop", "paste"):
        browser.execute_async_script(give, kind, 40)
        wait_for(browser, "document.body.dataset.state === 'idle'")
        assert text_of(browser, "facts").startswith(f"{kind}40.png: 40 ")
    for side in (1500, 30, 20):
        browser.execute_async_script(give, "drop", side)
    wait_for(browser, "document.body.dataset.state === 'idle'")
    assert text_of(browser, "facts").startswith("drop20.png: 20 ")


def test_a_photograph_beyond_the_limit_is_scaled_down_and_the_page_says_so(
    browser: Any, bundle: Path, tmp_path: Path
) -> None:
    Image.new("L", (6000, 5000), 90).save(tmp_path / "large.png", compress_level=1)
    with served(bundle / "web", {}) as address:
        browser.get(address)
        choose(browser, tmp_path / "large.png")
        width, height = read_canvas(browser, "after").shape[1::-1]
        assert 23.9e6 < width * height <= 24e6
        assert abs(width / height - 1.2) < 0.001
        assert f"{width} \N{MULTIPLICATION SIGN} {height} pixels, scaled down from 6000" in text_of(browser, "facts")


def test_a_missing_program_is_told_and_can_be_had_later(browser: Any, bundle: Path, tmp_path: Path) -> None:
    web = tmp_path / "web"
    shutil.copytree(bundle / "web", web)
    program = web / "ort" / "ort-wasm-simd-threaded.wasm.gz"
    program.rename(tmp_path / "away")
    Image.fromarray(sample("coffee.png")[:50, :50]).save(tmp_path / "cup.png")
    with served(web, {"Cache-Control": "no-store"}) as address:
        browser.get(address)
        wait_for(browser, "document.body.dataset.state === 'idle'")
        assert "ort-wasm-simd-threaded.wasm.gz is missing on the server (404)" in text_of(browser, "error")
        (tmp_path / "away").rename(program)
        choose(browser, tmp_path / "cup.png")
        assert text_of(browser, "error") == ""
        assert text_of(browser, "facts").startswith("cup.png: 50 ")
    browser.get_log("browser")  # the missing file is in it


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg"])
def test_the_picture_is_saved(browser: Any, address: str, tmp_path: Path, kind: str) -> None:
    Image.fromarray(sample("coffee.png")[:60, :80]).save(tmp_path / "cup.png")
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.get(address)
    choose(browser, tmp_path / "cup.png")
    browser.find_element("css selector", f'#format option[value="{kind}"]').click()
    after = read_canvas(browser, "after")
    browser.find_element("id", "download").click()
    saved = tmp_path / f"cup-coloured.{'png' if kind == 'image/png' else 'jpg'}"
    for _ in range(200):
        if saved.exists() and saved.stat().st_size:
            break
        threading.Event().wait(0.05)
    difference = np.abs(np.asarray(Image.open(saved).convert("RGB")).astype(int) - after)
    assert difference.max() == 0 if kind == "image/png" else difference.mean() < 3


WASM = {"ort/ort.wasm.bundle.min.mjs", "ort/ort-wasm-simd-threaded.wasm.gz"}
WEBGPU = {"ort/ort.jspi.bundle.min.mjs", "ort/ort-wasm-simd-threaded.jspi.wasm.gz"}
ON_WEBGPU = "on the graphics processor (WebGPU)"
OWN = {"index.html", "app.js", "worker.js", "style.css"}


def open_page(browser: Any, address: str) -> None:
    browser.get(address)
    wait_for(browser, "document.body.dataset.loadMilliseconds")


@contextmanager
def changed_page(bundle: Path, folder: Path, script: str) -> Iterator[tuple[str, list[str]]]:
    """The address of a page whose worker first runs some lines more, and what is asked of its server."""
    shutil.copytree(bundle / "web", folder)
    worker, asked = folder / "worker.js", list[str]()
    worker.write_text(f"{script}\n{worker.read_text()}")
    with served(folder, {"Cache-Control": "no-store"}, asked=asked) as address:
        yield address, asked


def test_webgpu_webassembly_and_python_give_the_same_pixels(
    browser: Any, bundle: Path, tmp_path: Path, record_property: Any
) -> None:
    colour, grey = sample("chelsea.png"), np.asarray(Image.fromarray(sample("coffee.png")).convert("L"))
    pictures = [colour[:101, :67], grey[:64, :257], colour[:1, :1], colour[40:240, 100:400], grey]
    answers: dict[str, list[NDArray[np.int64]]] = {
        "python": [colour_directly(bundle, np.ascontiguousarray(pixels)) for pixels in pictures]
    }
    with served(bundle / "web", {}) as address:
        for runtime, words in (("wasm", "on 1 processor thread (WebAssembly)"), ("webgpu", ON_WEBGPU)):
            open_page(browser, f"{address}?runtime={runtime}")
            assert words in text_of(browser, "versions")
            answers[runtime] = []
            for number, pixels in enumerate(pictures):
                Image.fromarray(pixels).save(tmp_path / f"{runtime}{number}.png")
                choose(browser, tmp_path / f"{runtime}{number}.png")
                assert text_of(browser, "facts").startswith(f"{runtime}{number}.png")
                assert text_of(browser, "facts").endswith(words)
                answers[runtime].append(read_canvas(browser, "after"))
    for one, other in (("wasm", "python"), ("webgpu", "python"), ("webgpu", "wasm")):
        differences = [np.abs(a - b) for a, b in zip(answers[one], answers[other], strict=True)]
        record_property(f"{one}_{other}", [f"max {each.max()}, mean {each.mean():.5f}" for each in differences])
        assert all(each.max() <= TOLERANCE for each in differences)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.parametrize(
    ("hardware", "runtime", "other"), [("false", WEBGPU, WASM), ("true", WASM, WEBGPU), ("none", WASM, WEBGPU)]
)
def test_one_runtime_is_loaded_and_its_bytes_are_told(
    browser: Any, bundle: Path, tmp_path: Path, hardware: str, runtime: set[str], other: set[str]
) -> None:
    """WebGPU of a graphics processor is taken; that of software, as here, is not, nor is none."""
    script = f"Object.defineProperty(GPUAdapterInfo.prototype, 'isFallbackAdapter', {{ get: () => {hardware} }});"
    if hardware == "none":
        script = "Object.defineProperty(GPU.prototype, 'requestAdapter', { value: async () => null });"
    with changed_page(bundle, tmp_path / "web", script) as (address, asked):
        open_page(browser, address)
        said = text_of(browser, "versions")
    assert (ON_WEBGPU in said) == (runtime is WEBGPU)
    assert sorted(asked) == sorted({*OWN, "colorizer.onnx", *runtime}), "each once"
    model, program, own = (
        sum((tmp_path / "web" / name).stat().st_size for name in names) for names in ({"colorizer.onnx"}, runtime, OWN)
    )
    assert f"Loaded {(model + program + own) / 1e6:.1f} MB in all" in said
    assert f"the model {model / 1e3:.0f} kB, ONNX Runtime Web 1.30.0 (MIT licence) {program / 1e3:,.0f} kB" in said
    assert f"this page {own / 1e3:.0f} kB" in said


# The device is lost while a photograph is coloured, and the program is not there at all.
LOST_DEVICE = """
const ask = GPUAdapter.prototype.requestDevice;
GPUAdapter.prototype.requestDevice = async function (...wishes) {
  const device = await ask.apply(this, wishes);
  addEventListener("message", () => device.destroy());
  return device;
};"""


@pytest.mark.parametrize("script", [LOST_DEVICE, ""], ids=["device lost", "program missing"])
def test_where_webgpu_fails_webassembly_colours_the_same_photograph(
    browser: Any, bundle: Path, tmp_path: Path, script: str
) -> None:
    pixels = sample("coffee.png")[:50, :50]
    Image.fromarray(pixels).save(tmp_path / "cup.png")
    with changed_page(bundle, tmp_path / "web", script) as (address, asked):
        if not script:
            (tmp_path / "web" / "ort" / "ort-wasm-simd-threaded.jspi.wasm.gz").unlink()
        open_page(browser, f"{address}?runtime=webgpu")
        assert (ON_WEBGPU in text_of(browser, "versions")) == bool(script)
        choose(browser, tmp_path / "cup.png")
        assert text_of(browser, "error") == ""
        assert text_of(browser, "facts").endswith("on 1 processor thread (WebAssembly)")
        assert text_of(browser, "versions").startswith("WebGPU was tried first and failed. ")
        assert np.abs(read_canvas(browser, "after") - colour_directly(bundle, pixels)).max() <= TOLERANCE
        assert set(asked) >= WASM | WEBGPU
    browser.get_log("browser")  # what failed is in it


def test_a_server_may_call_its_gzip_files_compressed_answers(browser: Any, bundle: Path) -> None:
    with served(bundle / "web", {}, unpacks=True) as address:
        open_page(browser, address)
        assert "WebAssembly" in text_of(browser, "versions")
        assert f"{sum((bundle / 'web' / name).stat().st_size for name in WASM) / 1e3:,.0f} kB" in text_of(
            browser, "versions"
        )
