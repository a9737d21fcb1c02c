"""The file that somebody else's program colours photographs with: `colorizer.onnx`, published after parity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from colorpress.core.errors import GateError
from colorpress.core.files import sha256_bytes, write_bytes
from colorpress.core.locks import scratch_folder
from export.colorizers import OnnxColorizer
from export.graph import Published, publish_model, read_metadata
from export.onnx_probe import refuse_hostile
from export.parity import DRAWN_PICTURES, REPORT, PictureParity, check_picture_parity, require_picture_parity
from export.picture_contract import COLORIZED_NAME, DEFAULT_WORK_SIZE, IMAGE_NAME, SATURATION_NAME, WORK_SIZE_NAME
from export.picture_graph import (
    build_picture_graph,
    keep_lightness,
)
from export.picture_reference import color_pixels
from export.predictors import Floats, OnnxPredictor, Pixels, Predictor
from export.sessions import open_session

# Of L in [0, 1]: a fortieth of a grey level, and many times what rounding makes of sums in another order.
_SAME_LIGHTNESS = 1e-4


def export_colorizer(
    source: Path,
    destination: Path,
    *,
    work_size: int = DEFAULT_WORK_SIZE,
    saturation: float = 1.0,
    pictures: Sequence[Pixels] = (),
    metadata: Mapping[str, str] | None = None,
    plain: bool = False,
    size: tuple[int, int] | None = None,
) -> Published[PictureParity]:
    """Write the picture graph of a bare network, after its pixels were compared with those of `color_pixels`.

    Args:
        source: a file written by `export_onnx`, `quantize_onnx` or `pack_onnx`.
        work_size: short side that the network sees where none is given, in pixels.
        saturation: what its chroma is multiplied by where no other is given.
        pictures: photographs, uint8 (H, W, 3), that are compared beside drawn pictures of odd sizes.
        metadata: further entries of the file's metadata_props, such as measured figures; the source's are kept.
        plain, size: as `build_picture_graph`.
    Raises:
        ConfigError: no such source.
        GateError: what `check_colorizer` raises, or a pixel differs by more than a grey level; nothing is published.
        InputError: the source is damaged, hostile, or no bare network.
        MachineError: the file cannot be written.
    """
    refuse_hostile(source)
    predictor = OnnxPredictor(source, field=True, threads=1)
    content = source.read_bytes()
    network = onnx.load_model_from_string(content)
    model = build_picture_graph(network, work_size=work_size, saturation=saturation, plain=plain, size=size)
    entries = {entry.key: entry.value for entry in network.metadata_props}
    entries |= {
        "input": f"{IMAGE_NAME} uint8 {_describe_input(size)}",
        "output": f"{COLORIZED_NAME} uint8 {_describe_shape(size)} sRGB, the luminance of the input",
        WORK_SIZE_NAME: str(work_size),
        SATURATION_NAME: f"{saturation:g}",
        "network_sha256": sha256_bytes(content),
        "network_size_bytes": str(len(content)),
        **(metadata or {}),
    }

    def check(trial: Path) -> PictureParity:
        parity = check_colorizer(
            OnnxColorizer(trial, threads=1), predictor, saturation=saturation, photographs=pictures
        )
        return require_picture_parity(parity, destination.name)

    return publish_model(model, entries, destination, check)


def _describe_shape(size: tuple[int, int] | None) -> str:
    return f"(1,{size[0]},{size[1]},3)" if size else "(N,H,W,3)"


def _describe_input(size: tuple[int, int] | None) -> str:
    return f"{_describe_shape(size)} sRGB" + ("" if size else " or (N,H,W,1) grey, any N, H, W >= 1")


def check_colorizer(
    colorizer: OnnxColorizer, predictor: Predictor, *, saturation: float = 1.0, photographs: Sequence[Pixels] = ()
) -> PictureParity:
    """Compare the pixels of a picture graph with those of `color_pixels` for its own network.

    The network is asked about the lightness that the graph computes, once that is the definition's but for rounding. A
    network in 8 bits takes a whole step where a value lies on the edge of two, and layers such as an instance norm
    enlarge it: of lightness that differs by 1e-7, sums in another order, it may make colours that differ by 16 grey
    levels. That is how much such a network knows, and says nothing of the picture work, of which each pixel counts.

    Args:
        colorizer: a picture graph, on one thread: sums on several are sums in another order. One whose working
            size cannot be chosen is compared at that and the saturation that it says; one for one size, at that size.
        predictor: the network of it, L to ab, or to the field of an affine one; on one thread too.
        saturation: what the colorizer multiplies chroma by.
    Raises:
        GateError: the lightness that the network sees is not that of the definition, or an answer has another shape.
    """
    path, work_size = colorizer.path, DEFAULT_WORK_SIZE
    cases: Sequence[tuple[int, int, int, int]] = DRAWN_PICTURES
    if not colorizer.has_choices:
        said = read_metadata(path)
        saturation, work_size = float(said[SATURATION_NAME]), int(said[WORK_SIZE_NAME])
        cases = tuple((*case[:3], work_size) for case in DRAWN_PICTURES)
    if colorizer.size:
        cases, photographs = tuple((*colorizer.size, channels, work_size) for channels in (1, 3)), ()
    session = open_session(path, keep_lightness(onnx.load(str(path))).SerializeToString(), threads=1)

    def reference(pixels: Pixels, size: int) -> Pixels:
        shown = np.broadcast_to(pixels, (*colorizer.size, 3)) if colorizer.size else pixels
        chosen = {WORK_SIZE_NAME: np.array(size, np.int64)} if colorizer.has_choices else {}
        (seen,) = session.run(None, {IMAGE_NAME: shown[None], **chosen})

        def ask(lightness: Floats) -> Floats:
            if seen.shape != lightness.shape or not np.abs(seen - lightness).max() <= _SAME_LIGHTNESS:
                height, width, _ = pixels.shape
                why = f"its network sees another lightness of a picture of {width} x {height} than the reference's"
                raise GateError("export", path.name, f"{why}; not published", REPORT)
            return predictor(seen)

        return color_pixels(pixels, ask, work_size=size, saturation=saturation)

    return check_picture_parity(reference, colorizer, photographs=photographs, work_size=work_size, drawn=cases)


def write_ort(source: Path, destination: Path) -> Path:
    """Write an .onnx file in ONNX Runtime's own format, which its minimal builds for phones read.

    Raises:
        ConfigError, InputError: as `open_session`.
    """
    with scratch_folder() as folder:
        made = folder / "model.ort"
        open_session(source, ort_path=made)
        return write_bytes(destination, made.read_bytes())
