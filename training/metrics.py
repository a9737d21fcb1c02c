"""How close answers are to the truth, on whole photographs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from colorpress.core.errors import InputError
from colorpress.core.processes import process_count, process_rank, sum_over_processes_
from training.batches import AnswerFolder, whole_photos
from training.cie import AB_SCALE
from training.lab import l_ab_to_rgb, rgb_to_l_ab
from training.photos import Photo

Floats = NDArray[np.float64]
_SSIM_WINDOW = 7
# Of a and b together, in ab/128: 13 units of CIE Lab.
_EDGE_SPAN = 0.1


@dataclass(frozen=True)
class PhotoScores:
    """Scores of one photograph.

    Attributes:
        l1_ab: mean absolute error of ab/128; the loss and the headline accuracy.
        l1_rgb: mean absolute error of sRGB in [0, 1].
        psnr_db: peak signal-to-noise ratio of sRGB, in decibels; at most 100 (a perfect answer).
        ssim: structural similarity of sRGB (Wang et al. 2004, 7 x 7 windows); NaN with a side under 7 pixels.
        delta_e: mean CIEDE2000 difference of the clipped sRGB colours; about 1 is just noticeable side by side (Sharma,
            Wu and Dalal 2005). Both as scikit-image computes them; NaN where they were not asked for.
        edge_l1: `l1_ab` near the edges of the photograph's colours (see `find_chroma_edges`); NaN where it has none.
        chroma: mean CIE chroma of the answer.
    """

    l1_ab: float
    l1_rgb: float
    psnr_db: float
    ssim: float
    delta_e: float
    edge_l1: float
    chroma: float


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

    @cached_property
    def edges(self) -> Tensor:
        """Its `find_chroma_edges`."""
        return find_chroma_edges(self.ab)


def show_colours(lightness: Tensor, ab: Tensor) -> ShownColours:
    """The colours of lightness (1, 1, H, W) in [0, 1] and ab (1, 2, H, W) in ab/128."""
    rgb = l_ab_to_rgb(lightness, ab)
    shown_lightness, shown_ab = rgb_to_l_ab(rgb)
    lab = torch.cat((100.0 * shown_lightness, AB_SCALE * shown_ab), 1)[0].permute(1, 2, 0)
    return ShownColours(ab, rgb, lab.cpu().numpy())


def score_photo(truth: ShownColours, answer: ShownColours, *, perceptual: bool = True) -> PhotoScores:
    """Score the answer for one photograph; both have the same lightness.

    Args:
        perceptual: False leaves out `ssim` and `delta_e`, which take much longer than all the rest.
    """
    squared_error = (truth.rgb - answer.rgb).square().mean().item()
    ssim, delta_e = _score_perception(truth, answer) if perceptual else (math.nan, math.nan)
    return PhotoScores(
        l1_ab=mean_l1(answer.ab, truth.ab),
        l1_rgb=mean_l1(answer.rgb, truth.rgb),
        psnr_db=float(-10.0 * np.log10(max(squared_error, 1e-10))),
        ssim=ssim,
        delta_e=delta_e,
        edge_l1=_edge_l1(truth, answer.ab),
        chroma=mean_chroma(answer.ab),
    )


def _score_perception(truth: ShownColours, answer: ShownColours) -> tuple[float, float]:
    from skimage.color import deltaE_ciede2000
    from skimage.metrics import structural_similarity

    ssim = math.nan
    if min(truth.rgb.shape[-2:]) >= _SSIM_WINDOW:
        pictures = [each.rgb[0].permute(1, 2, 0).cpu().numpy() for each in (truth, answer)]
        ssim = float(structural_similarity(*pictures, win_size=_SSIM_WINDOW, channel_axis=2, data_range=1.0))
    return ssim, float(np.mean(deltaE_ciede2000(truth.lab, answer.lab)))


def _edge_l1(truth: ShownColours, answer: Tensor) -> float:
    count = int(truth.edges.sum())
    errors = (answer - truth.ab).abs() * truth.edges
    return float(errors.sum().item() / (errors.shape[1] * count)) if count else math.nan


@torch.inference_mode()
def validate_l1(
    network: nn.Module,
    photos: Sequence[Photo],
    *,
    short_side: int,
    max_pixels: int,
    device: torch.device,
    target: AnswerFolder | None = None,
) -> float:
    """The mean over photographs of each one's L1 (ab/128), whole photographs at a short side of `short_side` pixels.

    Puts the network into eval mode for the call and restores its mode. Several processes share the photographs, and
    all get the mean over all of them.

    Args:
        target: what a teacher answered, where that is what counts; None is the truth.
    Raises:
        InputError: no photograph can be read, or an answer of `target` is missing.
    """
    was_training = network.training
    network.eval()
    own = photos[process_rank() :: process_count()]
    try:
        errors = [
            mean_l1(network(lightness), ab if target is None else target.enlarge(photo, ab))
            for photo, rgb in whole_photos(own, short_side=short_side, max_pixels=max_pixels)
            for lightness, ab in [rgb_to_l_ab(rgb.to(device))]
        ]
    finally:
        network.train(was_training)
    total, count = sum_over_processes_(torch.tensor([sum(errors), len(errors)], dtype=torch.float64)).tolist()
    if not count:
        raise InputError("data set", None, "no validation photograph could be read", "check the folder of --data")
    return float(total / count)


def mean_l1(answer: Tensor, truth: Tensor) -> float:
    """The mean absolute difference of two tensors of one shape."""
    return float((answer - truth).abs().mean().item())


def kept_share(l1_without: Floats, l1_model: Floats, l1_best: Floats) -> float:
    """(L1_without - L1_model) / (L1_without - L1_best): 1 is as much as best.pt, 0 is none, below 0 is worse than none.

    What L1 (ab/128) without it is makes the measure: of the grey answer (ab = 0) for retained colour G, of a lightness
    table for content colour C; for fidelity F all are L1 to best.pt's answer, of grey and of the model, and best.pt's
    own is 0.

    Args:
        l1_without, l1_model, l1_best: of each photograph, one-dimensional and of one length.
    Returns:
        The share of the means; NaN where best.pt is no better than what it is held against: nothing can be kept.
    """
    return float(_shares(*(np.array(l1.mean()) for l1 in (l1_without, l1_model, l1_best))))


def kept_interval(l1_without: Floats, l1_model: Floats, l1_best: Floats) -> tuple[float, float]:
    """The 95 % percentile-bootstrap interval of `kept_share`, photographs drawn in pairs (Efron 1979), always the same.

    Returns:
        The lower and upper bound; NaN twice for fewer than two photographs, or where more than one draw in forty has
        nothing to keep: those are taken for the worst at the lower end and for the best at the upper one.
    """
    if len(l1_without) < 2:
        return math.nan, math.nan
    draws = _draw_photos(len(l1_without))  # (draws, photographs)
    # All in one product, which is as fast as one of them: the draws come from memory once.
    means = draws @ np.stack((l1_without, l1_model, l1_best), axis=1)  # (draws, 3)
    shares = _shares(*means.T)
    low = np.percentile(np.nan_to_num(shares, nan=-np.inf), 2.5, method="lower")
    high = np.percentile(np.nan_to_num(shares, nan=np.inf), 97.5, method="higher")
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else (math.nan, math.nan)


def _shares(without: Floats, model: Floats, best: Floats) -> Floats:
    return np.asarray((without - model) / np.where(without > best, without - best, np.nan))


@lru_cache(maxsize=2)
def _draw_photos(count: int, draws: int = 2000) -> Floats:
    """The weight of each photograph in each draw with replacement, each draw's of sum 1: (draws, photographs)."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1.0 / count), draws) / count


def mean_chroma(ab: Tensor) -> float:
    """The mean CIE chroma of ab (1, 2, H, W) in ab/128: 0 is grey, and vivid colours have 50 and more."""
    # A norm over channels takes 50 times as long.
    return float(AB_SCALE * torch.hypot(ab[:, 0], ab[:, 1]).mean().item())


def find_chroma_edges(ab: Tensor) -> Tensor:
    """Where the colours of a photograph change: (1, 1, H, W) bool, from ab (1, 2, H, W) in ab/128.

    A pixel is at an edge where a and b together span more than 13 units of CIE Lab in the 3 x 3 pixels around it.
    """
    span = _largest_around(ab) + _largest_around(-ab)  # (1, 2, H, W), the largest less the smallest
    return span.sum(1, keepdim=True) > _EDGE_SPAN


def _largest_around(values: Tensor) -> Tensor:
    """The largest of the 3 x 3 values around each one; `max_pool2d` takes twenty times as long."""
    for dimension in (-1, -2):
        size = values.shape[dimension]
        largest = values.clone()
        for to, of in ((1, 0), (0, 1)):
            place = largest.narrow(dimension, to, size - 1)
            torch.maximum(place, values.narrow(dimension, of, size - 1), out=place)
        values = largest
    return values


def colourfulness(rgb: Tensor) -> float:
    """Colourfulness M3 of a picture (1, 3, H, W) in [0, 1], on the 0-255 scale (Hasler and Suesstrunk 2003)."""
    red, green, blue = (255.0 * rgb[0]).unbind(0)
    red_green, yellow_blue = red - green, 0.5 * (red + green) - blue
    spread = torch.hypot(red_green.std(correction=0), yellow_blue.std(correction=0))
    offset = torch.hypot(red_green.mean(), yellow_blue.mean())
    return float((spread + 0.3 * offset).item())
