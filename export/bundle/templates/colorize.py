"""Colours photographs: python colorize.py old.jpg more/*.png --output-dir coloured

Needs: pip install onnxruntime numpy pillow
Made by colorpress. Copyright (c) 2026 the colorpress authors. SPDX-License-Identifier: MIT
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def colorize(session: onnxruntime.InferenceSession, picture: Image.Image, **options: np.ndarray) -> Image.Image:
    """Colour one picture of any size and mode; the answer is RGB, upright by the EXIF orientation of the picture."""
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16"):  # 16-bit grey, which Pillow would clip at 255
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    pixels = np.asarray(upright.convert("L" if upright.mode in ("1", "L", "LA") else "RGB"))
    # uint8, (1, height, width, 1) for grey and (1, height, width, 3) for sRGB
    image = pixels.reshape(1, *pixels.shape[:2], -1)
    return Image.fromarray(session.run(["colorized"], {"image": image, **options})[0][0])


def main() -> int:
    parser = argparse.ArgumentParser(description="Colour photographs.")
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--output-dir", "-o", type=Path, default=Path("coloured"), help="default: %(default)s")
    parser.add_argument("--model", type=Path, default=Path(__file__).with_name("colorizer.onnx"))
    parser.add_argument("--work-size", type=np.int64, help="pixels that the network sees; default: the model's own")
    parser.add_argument("--saturation", type=np.float32, help="more or less colour; default: the model's own")
    options = parser.parse_args()
    given = {name: vars(options)[name] for name in ("work_size", "saturation")}
    chosen = {name: np.array(value) for name, value in given.items() if value is not None}
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(options.model, settings, providers=["CPUExecutionProvider"])
    options.output_dir.mkdir(parents=True, exist_ok=True)
    failures = 0
    for path in options.photos:
        output = options.output_dir / f"{path.stem}.png"
        try:
            with Image.open(path) as picture:
                coloured = colorize(session, picture, **chosen)
            with output.open("xb") as stream:  # nothing that is there is written over
                coloured.save(stream, "PNG")
            print(output)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
