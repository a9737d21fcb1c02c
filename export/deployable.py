"""The file that somebody else's program colours photographs with: `colorizer.onnx`, published after parity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from colorpress.core.files import sha256_bytes, write_bytes
from colorpress.core.locks import scratch_folder
from export.colorizers import OnnxColorizer
from export.graph import Published, publish_model
from export.onnx_probe import refuse_hostile
from export.parity import PictureParity, check_picture_parity, require_picture_parity
from export.picture_graph import (
    COLORIZED_NAME,
    DEFAULT_WORK_SIZE,
    IMAGE_NAME,
    SATURATION_NAME,
    WORK_SIZE_NAME,
    build_picture_graph,
)
from export.picture_reference import color_pixels
from export.predictors import OnnxPredictor, Pixels
from export.sessions import open_session


def export_colorizer(
    source: Path,
    destination: Path,
    *,
    work_size: int = DEFAULT_WORK_SIZE,
    saturation: float = 1.0,
    pictures: Sequence[Pixels] = (),
    metadata: Mapping[str, str] | None = None,
) -> Published[PictureParity]:
    """Write the picture graph of a bare network, after its pixels were compared with those of `color_pixels`.

    Args:
        source: a file written by `export_onnx`, `quantize_onnx` or `pack_onnx`.
        work_size: short side that the network sees where none is given, in pixels.
        saturation: what its chroma is multiplied by where no other is given.
        pictures: photographs, uint8 (H, W, 3), that are compared beside drawn pictures of odd sizes.
        metadata: further entries of the file's metadata_props, such as measured figures; the source's are kept.
    Raises:
        ConfigError: no such source.
        GateError: a pixel differs by more than a grey level; nothing is published.
        InputError: the source is damaged, hostile, or no bare network.
        MachineError: the file cannot be written.
    """
    refuse_hostile(source)
    predictor = OnnxPredictor(source, field=True, threads=1)
    content = source.read_bytes()
    network = onnx.load_model_from_string(content)
    model = build_picture_graph(network, work_size=work_size, saturation=saturation)
    entries = {entry.key: entry.value for entry in network.metadata_props}
    entries |= {
        "input": f"{IMAGE_NAME} uint8 (N,H,W,3) sRGB or (N,H,W,1) grey, any N, H, W >= 1",
        "output": f"{COLORIZED_NAME} uint8 (N,H,W,3) sRGB, the luminance of the input",
        WORK_SIZE_NAME: str(work_size),
        SATURATION_NAME: f"{saturation:g}",
        "network_sha256": sha256_bytes(content),
        "network_size_bytes": str(len(content)),
        **(metadata or {}),
    }

    def check(trial: Path) -> PictureParity:
        parity = check_picture_parity(
            lambda pixels, size: color_pixels(pixels, predictor, work_size=size, saturation=saturation),
            OnnxColorizer(trial, threads=1),
            photographs=pictures,
        )
        return require_picture_parity(parity, destination.name)

    return publish_model(model, entries, destination, check)


def write_ort(source: Path, destination: Path) -> Path:
    """Write an .onnx file in ONNX Runtime's own format, which its minimal builds for phones read.

    Raises:
        ConfigError, InputError: as `open_session`.
    """
    with scratch_folder() as folder:
        made = folder / "model.ort"
        open_session(source, ort_path=made)
        return write_bytes(destination, made.read_bytes())
