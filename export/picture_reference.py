"""What colouring a picture is: the definition that the ONNX graph of `export.picture_graph` is checked against.

A picture is averaged down to the working size, a network answers the chroma of that, the chroma is enlarged, and
every pixel keeps its own luminance. What an affine network answers is enlarged before that luminance makes chroma of
it. Everything is torch, exact, and in stripes, so memory grows with the picture by its own bytes alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from export.picture_contract import DEFAULT_WORK_SIZE, check_field, working_size
from export.predictors import Pixels, Predictor
from training.lab import l_ab_to_rgb, rgb_to_l_ab
from training.network import apply_field

_STRIPE_PIXELS = 1 << 20


def shrink_pixels(pixels: Pixels, work_size: int) -> Tensor:
    """sRGB in [0, 1], float32 (1, C, h, w), of a picture (H, W, C) at its working size; never enlarged.

    First squares are averaged, then a triangle of two working pixels' width is laid over the averages: as Pillow's
    `resize` with BILINEAR and a reducing gap of 2.
    """
    height, width, channels = pixels.shape
    rows, columns, block = working_size(height, width, work_size)
    averaged = torch.empty(1, channels, -(-height // block), -(-width // block))
    step = max(1, _STRIPE_PIXELS // (width * block))
    for start in range(0, averaged.shape[2], step):
        stripe = torch.tensor(pixels[start * block : (start + step) * block]).permute(2, 0, 1)[None].float()
        missing = (0, -width % block, 0, -stripe.shape[2] % block)
        averaged[:, :, start : start + step] = F.avg_pool2d(F.pad(stripe, missing, mode="replicate"), block)
    short = _lay_triangles(averaged.transpose(2, 3), height / (rows * block), rows).transpose(2, 3)
    return _lay_triangles(short, width / (columns * block), columns) / 255.0  # (1, C, h, w)


def _lay_triangles(values: Tensor, step: float, small: int) -> Tensor:
    """(..., length) to (..., small): output i is a triangle around (i + 1/2) step - 1/2, weights adding to 1."""
    length = values.shape[-1]
    reach = max(step, 1.0)
    center = (torch.arange(small, dtype=torch.float64) + 0.5) * step - 0.5
    index = (center - reach).floor().long()[:, None] + torch.arange(math.ceil(2 * reach) + 1)  # (small, taps)
    near = (1.0 - (center[:, None] - index).abs() / reach).clamp(min=0.0) * ((index >= 0) & (index < length))
    weights = (near / near.sum(dim=1, keepdim=True)).float()  # (small, taps)
    total = values.new_zeros(*values.shape[:-1], small)
    for tap in range(index.shape[1]):
        total += values[..., index[:, tap].clamp(0, length - 1)] * weights[:, tap]
    return total


def color_pixels(
    pixels: Pixels, predictor: Predictor, *, work_size: int = DEFAULT_WORK_SIZE, saturation: float = 1.0
) -> Pixels:
    """Colour one picture, uint8 (H, W, 3) sRGB or (H, W, 1) grey; uint8 (H, W, 3) sRGB.

    Args:
        predictor: L float32 (1, 1, h, w) in [0, 1] to ab float32 (1, 2, h, w), or to B and A (1, 4, h, w) of an affine
            field (see `training.network.apply_field`), which decide by the lightness of each pixel of the picture.
        work_size: short side of what the predictor sees, in pixels; smaller pictures are not enlarged.
        saturation: what the predictor's chroma is multiplied by.
    Raises:
        InputError: the predictor answers NaN, infinity or another shape.
    """
    small = shrink_pixels(pixels, work_size).expand(-1, 3, -1, -1)  # (1, 3, h, w)
    lightness = rgb_to_l_ab(small)[0]  # (1, 1, h, w)
    answer = predictor(np.ascontiguousarray(lightness.numpy()))
    field = saturation * torch.from_numpy(check_field(answer, lightness.shape[2:]))  # (1, 2 or 4, h, w)
    height, width, _ = pixels.shape
    colored = np.empty((height, width, 3), np.uint8)
    step = max(1, _STRIPE_PIXELS // width)
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        stripe = torch.tensor(pixels[rows]).permute(2, 0, 1)[None].expand(-1, 3, -1, -1)  # (1, 3, rows, W)
        lightness = rgb_to_l_ab(stripe)[0]  # (1, 1, rows, W)
        ab = apply_field(_enlarge_rows(field, rows, height, width), lightness)  # (1, 2, rows, W)
        rgb = l_ab_to_rgb(lightness, ab)  # (1, 3, rows, W)
        colored[rows] = (rgb[0] * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return colored


def _enlarge_rows(field: Tensor, rows: slice, height: int, width: int) -> Tensor:
    """Rows of F.interpolate(field, (height, width), mode="bilinear") without making the rest of it."""
    source = (torch.arange(rows.start, rows.stop, dtype=torch.float32) + 0.5) * (field.shape[2] / height) - 0.5
    source = source.clamp(0, field.shape[2] - 1)
    above = source.long()
    below = (above + 1).clamp(max=field.shape[2] - 1)
    weight = (source - above)[:, None]
    mixed = field[:, :, above] * (1.0 - weight) + field[:, :, below] * weight  # (1, C, rows, w)
    return F.interpolate(mixed, (rows.stop - rows.start, width), mode="bilinear", align_corners=False)
