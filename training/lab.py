"""sRGB to the network's colour tensors and back, in torch, on any device.

`L` is L*/100 in [0, 1]; `ab` is (a*, b*)/128, so within [-1, 1]. Source of the formulas: IEC 61966-2-1 (sRGB) and
CIE 15 (Lab).
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.cie import AB_SCALE, LAB_EPSILON, LAB_KNEE, LAB_OFFSET, LAB_SLOPE, RGB_TO_XYZ, WHITE


def rgb_to_l_ab(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Convert sRGB pictures to what the network reads and what it should answer.

    Args:
        rgb: (N, 3, H, W), uint8 in [0, 255] or floating point in [0, 1].
    Returns:
        L (N, 1, H, W) in [0, 1] and ab (N, 2, H, W) in [-1, 1], float32 (float64 for float64 input); without gradients.
    """
    if rgb.dtype == torch.uint8:
        # 256 possible values: one table look-up instead of a power for every pixel.
        table = _linear_from_srgb(torch.arange(256, device=rgb.device) / 255.0)
        linear = table.index_select(0, rgb.flatten().int()).view(rgb.shape)
    else:
        linear = _linear_from_srgb(rgb)
    matrix = linear.new_tensor(RGB_TO_XYZ) / linear.new_tensor(WHITE)[:, None]  # (3, 3), relative to white
    xyz = torch.matmul(matrix, linear.flatten(2)).view(linear.shape)  # (N, 3, H, W)
    fx, fy, fz = torch.split(_follow_lab_curve_(xyz), 1, dim=1)  # (N, 1, H, W) each
    return 1.16 * fy - 0.16, torch.cat((500.0 * (fx - fy), 200.0 * (fy - fz)), dim=1) / AB_SCALE


def srgb_to_ab(rgb: Tensor) -> Tensor:
    """ab (N, 2, H, W) in ab/128 of sRGB (N, 3, H, W), clipped to [0, 1]; gradients are finite everywhere.

    As `rgb_to_l_ab`, of products with single numbers: a matrix product would be one that autocast computes in bf16, and
    that quantization takes for a layer.
    """
    linear = _linear_from_srgb(rgb.clamp(0.0, 1.0))
    red, green, blue = (linear[:, channel : channel + 1] for channel in range(3))  # (N, 1, H, W) each
    fx, fy, fz = (
        _lab_curve((of_red / white) * red + (of_green / white) * green + (of_blue / white) * blue)
        for (of_red, of_green, of_blue), white in zip(RGB_TO_XYZ, WHITE, strict=True)
    )
    return torch.cat((500.0 * (fx - fy), 200.0 * (fy - fz)), dim=1) / AB_SCALE


def l_ab_to_rgb(lightness: Tensor, ab: Tensor) -> Tensor:
    """Convert L (N, 1, H, W) in [0, 1] and ab (N, 2, H, W) in [-1, 1] to sRGB (N, 3, H, W) clipped to [0, 1]."""
    fy = (lightness[:, 0] + 0.16) / 1.16  # (N, H, W)
    fx = fy + ab[:, 0] * (AB_SCALE / 500.0)
    fz = fy - ab[:, 1] * (AB_SCALE / 200.0)
    # Clipped as Z is by scikit-image: there is no colour beyond.
    f = torch.stack((fx, fy, fz), dim=1).clamp(min=0.0)  # (N, 3, H, W)
    xyz = _undo_lab_curve(f)
    xyz = xyz * xyz.new_tensor(WHITE)[None, :, None, None]
    matrix = torch.linalg.inv(xyz.new_tensor(RGB_TO_XYZ, dtype=torch.float64)).to(xyz.dtype)
    linear = torch.einsum("ij,njhw->nihw", matrix, xyz)
    return _srgb_from_linear(linear).clamp(0.0, 1.0)


def lightness_to_grey(lightness: Tensor) -> Tensor:
    """The sRGB value in [0, 1] of the grey that has lightness L in [0, 1], of any shape."""
    return _srgb_from_linear(_undo_lab_curve((lightness + 0.16) / 1.16)).clamp(0.0, 1.0)


def _lab_curve(xyz: Tensor) -> Tensor:
    """f(X / Xn) of Lab; the root of what is too dark for it is never taken, since its slope at 0 is infinite."""
    return torch.where(xyz > LAB_EPSILON, xyz.clamp(min=LAB_EPSILON).pow(1.0 / 3.0), LAB_SLOPE * xyz + LAB_OFFSET)


@torch.no_grad()
def _follow_lab_curve_(xyz: Tensor) -> Tensor:
    """As `_lab_curve`, without gradients and in place: the root of what is bright enough, and less by the line else.

    Every crop of a training comes by here. With a power, and a choice for each value, the conversion took 6 ms of a
    small network's step of 37, and takes 2.5.
    """
    root = xyz.clamp(min=LAB_EPSILON).log_().mul_(1.0 / 3.0).exp_()
    return root.add_(xyz.clamp_(max=LAB_EPSILON).sub_(LAB_EPSILON), alpha=LAB_SLOPE)


def _undo_lab_curve(f: Tensor) -> Tensor:
    return torch.where(f > LAB_KNEE, f**3, (f - LAB_OFFSET) / LAB_SLOPE)


def _srgb_from_linear(linear: Tensor) -> Tensor:
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0.0031308).pow(1 / 2.4) - 0.055, 12.92 * linear)


def _linear_from_srgb(srgb: Tensor) -> Tensor:
    return torch.where(srgb > 0.04045, ((srgb + 0.055) / 1.055).pow(2.4), srgb / 12.92)
