"""How close an answer is to the truth, one whole photograph at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.cie import AB_SCALE
from training.lab import l_ab_to_rgb, rgb_to_l_ab

Floats = NDArray[np.float64]
_SSIM_WINDOW = 7


@dataclass(frozen=True)
class PhotoScores:
    """Scores of one photograph.

    Attributes:
        l1_ab: mean absolute error of ab/128; the loss and the headline accuracy.
        l1_rgb: mean absolute error of sRGB in [0, 1].
        psnr_db: peak signal-to-noise ratio of sRGB, in decibels; at most 100 (a perfect answer).
        ssim: structural similarity of sRGB (Wang et al. 2004, 7 x 7 windows, as scikit-image computes it); NaN for
            photographs with a side under 7 pixels.
        delta_e: mean CIEDE2000 difference of the sRGB colours, those beyond its range clipped; about 1 is just
            noticeable side by side (Sharma, Wu and Dalal 2005, as scikit-image computes it).
    """

    l1_ab: float
    l1_rgb: float
    psnr_db: float
    ssim: float
    delta_e: float


@dataclass(frozen=True)
class ShownColours:
    """A photograph as the truth or an answer shows it, in every form that scores are computed from.

    Attributes:
        ab: (1, 2, H, W), ab/128.
        rgb: (1, 3, H, W) sRGB in [0, 1], colours beyond its range clipped.
        lab: L*, a*, b* (H, W, 3) of `rgb`.
    """

    ab: Tensor
    rgb: Tensor
    lab: NDArray[np.float32]


def show_colours(lightness: Tensor, ab: Tensor) -> ShownColours:
    """The colours of lightness (1, 1, H, W) in [0, 1] and ab (1, 2, H, W) in ab/128."""
    rgb = l_ab_to_rgb(lightness, ab)
    shown_lightness, shown_ab = rgb_to_l_ab(rgb)
    lab = torch.cat((100.0 * shown_lightness, AB_SCALE * shown_ab), 1)[0].permute(1, 2, 0)
    return ShownColours(ab, rgb, lab.cpu().numpy())


def score_photo(truth: ShownColours, answer: ShownColours) -> PhotoScores:
    """Score the answer for one photograph; both have the same lightness."""
    from skimage.color import deltaE_ciede2000
    from skimage.metrics import structural_similarity

    squared_error = (truth.rgb - answer.rgb).square().mean().item()
    ssim = float("nan")
    if min(truth.rgb.shape[-2:]) >= _SSIM_WINDOW:
        pictures = [each.rgb[0].permute(1, 2, 0).cpu().numpy() for each in (truth, answer)]
        ssim = float(structural_similarity(*pictures, win_size=_SSIM_WINDOW, channel_axis=2, data_range=1.0))
    return PhotoScores(
        l1_ab=mean_l1(answer.ab, truth.ab),
        l1_rgb=mean_l1(answer.rgb, truth.rgb),
        psnr_db=float(-10.0 * np.log10(max(squared_error, 1e-10))),
        ssim=ssim,
        delta_e=float(np.mean(deltaE_ciede2000(truth.lab, answer.lab))),
    )


def mean_l1(answer: Tensor, truth: Tensor) -> float:
    """The mean absolute difference of two tensors of one shape."""
    return float((answer - truth).abs().mean().item())


def retained_colour(l1_grey: Floats, l1_model: Floats, l1_best: Floats) -> float:
    """G = (L1_grey - L1_model) / (L1_grey - L1_best): 1 is as much colour as best.pt, 0 is none, below 0 is worse.

    Args:
        l1_grey, l1_model, l1_best: per-photograph L1 (ab/128) of the grey answer (ab = 0), of the model and of
            best.pt on the same photographs, one-dimensional and of one length.
    Returns:
        G of the means; NaN where best.pt is no better than grey, since then there is no colour to retain.
    """
    gained = float(np.mean(l1_grey) - np.mean(l1_best))
    return float(np.mean(l1_grey) - np.mean(l1_model)) / gained if gained > 0 else float("nan")


def bootstrap_interval(
    l1_grey: Floats, l1_model: Floats, l1_best: Floats, *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """The percentile-bootstrap interval of G, photographs resampled in pairs (Efron 1979).

    Returns:
        The lower and upper bound; NaN twice for fewer than two photographs, or where a draw has no colour to retain.
    """
    count = len(l1_grey)
    if count < 2:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    values = np.empty(draws)
    for draw in range(draws):
        chosen = generator.integers(0, count, count)
        values[draw] = retained_colour(l1_grey[chosen], l1_model[chosen], l1_best[chosen])
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(values, (tail, 1.0 - tail))
    return float(low), float(high)


def colourfulness(rgb: Tensor) -> float:
    """Colourfulness M3 of a picture (1, 3, H, W) in [0, 1], on the 0-255 scale (Hasler and Suesstrunk 2003)."""
    red, green, blue = (255.0 * rgb[0]).unbind(0)
    red_green, yellow_blue = red - green, 0.5 * (red + green) - blue
    spread = torch.hypot(red_green.std(correction=0), yellow_blue.std(correction=0))
    offset = torch.hypot(red_green.mean(), yellow_blue.mean())
    return float((spread + 0.3 * offset).item())
