"""What the literature has against colours that are averaged away, as losses beside those of the product.

Colour classes as the answer, with rare ones counting for more; terms beside the L1: edges, several scales, a critic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.batches import whole_photos
from training.lab import rgb_to_l_ab
from training.losses import (
    CLASS_CELL,
    CLASSES_PER_AXIS,
    Batch,
    ChromaClassLoss,
    Loss,
    class_cross_entropy,
    find_classes,
)
from training.network import ColorNetwork, GraphArchitecture, pad_to_multiple
from training.photos import Photo
from training.unet import UNet, UNetPlan

# Up-sampling levels that a network of classes goes without: it answers at quarter size, as that of the source does.
LEVELS_LEFT_OUT = 2
_ANNEALED = 0.38  # Zhang, Isola and Efros 2016
_REBALANCED = 0.5  # the same source's lambda: half of the weights' prior is uniform
_SMOOTHED = 0.5  # standard deviation of the smoothing of shares, in classes; 5 units of ab of 10 in the source
_COUNTED_PHOTOS, _COUNTED_SIDE = 500, 128
_SCALES = (2, 4, 8, 16)
_CRITIC_WIDTH = 32

Decoder = Callable[[Tensor], Tensor]


def class_centres() -> Tensor:
    """ab/128 in the middle of each class, (256, 2)."""
    middles = (torch.arange(CLASSES_PER_AXIS) - CLASSES_PER_AXIS / 2 + 0.5) * CLASS_CELL
    return torch.cartesian_prod(middles, middles)


def anneal_mean(logits: Tensor, temperature: float = _ANNEALED) -> Tensor:
    """The mean colour by probabilities of a temperature: 1 is the expectation, towards 0 the likeliest class.

    Args:
        logits: (N, 256, H, W).
    Returns:
        (N, 2, H, W) in ab/128.
    """
    return torch.einsum("nkhw,kc->nchw", (logits.float() / temperature).softmax(1), class_centres().to(logits.device))


def find_median(logits: Tensor) -> Tensor:
    """The median a and the median b, each by itself, which is what L1 asks for; arguments as `anneal_mean`."""
    count, _, height, width = logits.shape
    shares = logits.float().softmax(1).view(count, CLASSES_PER_AXIS, CLASSES_PER_AXIS, height, width)
    return torch.stack([_median_of(shares.sum(2)), _median_of(shares.sum(1))], dim=1)


def _median_of(shares: Tensor) -> Tensor:
    """The median of what has these shares (N, 16, H, W), evenly spread within each class: (N, H, W)."""
    below = shares.cumsum(1)
    place = (below < 0.5).sum(1, keepdim=True).clamp(max=CLASSES_PER_AXIS - 1)  # (N, 1, H, W), of the class it lies in
    own = shares.gather(1, place)
    within = ((0.5 - (below.gather(1, place) - own)) / own).clamp(0.0, 1.0)
    return (place + within - CLASSES_PER_AXIS / 2)[:, 0] * CLASS_CELL


DECODERS: Mapping[str, Decoder] = {
    "annealed mean, T 0.38": anneal_mean,
    "expectation": lambda logits: anneal_mean(logits, 1.0),
    "median": find_median,
}


class ClassNetwork(ColorNetwork):
    """A UNet whose last two up-sampling levels are left out, and which names a colour class at quarter size.

    Args:
        plan: of the whole UNet, with three decoder levels at least.
        decode: makes colours of the logits.
    """

    def __init__(self, plan: UNetPlan, decode: Decoder) -> None:
        super().__init__()
        self.body = UNet(replace(plan, decoder=plan.decoder[:-LEVELS_LEFT_OUT]))
        self.body.head = nn.Identity()  # type: ignore[assignment]
        self.tell = nn.Conv2d(self.body.architecture.decoder[-1][-1], CLASSES_PER_AXIS**2, 1)
        for parameter in self.tell.parameters():
            nn.init.zeros_(parameter)
        self.decode = decode
        self.size_multiple, self.output_stride = self.body.size_multiple, self.body.output_stride

    @property
    def architecture(self) -> GraphArchitecture:
        """Says nothing: no network is built from a checkpoint of this one."""
        return GraphArchitecture("", self.size_multiple)

    def forward_logits(self, lightness: Tensor) -> Tensor:
        """L (N, 1, H, W) of whole multiples to logits (N, 256, H / 4, W / 4)."""
        logits: Tensor = self.tell(self.body.forward_levels(lightness)[1][-1])
        return logits

    def forward_coarse(self, lightness: Tensor) -> Tensor:
        return self.decode(self.forward_logits(lightness))

    def with_weights(self, state_dict: Mapping[str, Tensor]) -> ClassNetwork:
        self.load_state_dict(state_dict)
        return self.eval()


class ClassAnswerLoss(Loss):
    """The cross-entropy of classes that are the answer itself.

    Args:
        weights: (256,), of each class; None: all count alike.
    """

    network: ClassNetwork
    weights: Tensor | None

    def __init__(self, network: ClassNetwork, weights: Tensor | None = None) -> None:
        super().__init__(network)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, lightness: Tensor) -> Tensor:
        return self.network.forward_logits(pad_to_multiple(lightness, self.network.size_multiple))

    def loss(self, answered: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        loss = class_cross_entropy(answered, batch.ab, self.network.output_stride, self.weights)
        answer = self.network.complete(self.network.decode(answered.detach()), batch.lightness)
        return loss, (answer - batch.ab).abs().mean()


def rebalance_classes(photos: Sequence[Photo], *, max_pixels: int) -> Tensor:
    """The weight (256,) of each class by how rare it is in photographs, 1 in their mean (Zhang, Isola and Efros 2016).

    Raises:
        InputError: no photograph can be read.
    """
    counts = torch.zeros(CLASSES_PER_AXIS**2)
    for _, rgb in whole_photos(photos[:_COUNTED_PHOTOS], short_side=_COUNTED_SIDE, max_pixels=max_pixels):
        classes = find_classes(rgb_to_l_ab(rgb)[1], 1 << LEVELS_LEFT_OUT)
        counts += classes.flatten().bincount(minlength=len(counts))
    shares, known = counts / counts.sum(), (counts > 0).sum()
    near = torch.exp(-0.5 * (torch.arange(-1.0, 2.0) / _SMOOTHED) ** 2)
    near /= near.sum()
    square = F.pad(shares.view(1, 1, CLASSES_PER_AXIS, -1), (1, 1, 1, 1))
    smooth = F.conv2d(square, torch.outer(near, near)[None, None]).flatten()
    weights = 1.0 / ((1.0 - _REBALANCED) * smooth + _REBALANCED / known)
    return weights / (shares * weights).sum()


class RebalancedLoss(ChromaClassLoss):
    """The second task of the product with classes that count for more where they are rare."""

    weights: Tensor

    def __init__(self, network: UNet, weight: float, weights: Tensor) -> None:
        super().__init__(network, weight)
        self.register_buffer("weights", weights, persistent=False)

    def loss(self, answered: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        answer, logits = answered
        l1 = (answer.float() - batch.ab).abs().mean()
        return l1 + self.weight * class_cross_entropy(logits, batch.ab, self.stride, self.weights), l1.detach()


class TermLoss(ChromaClassLoss):
    """The loss of the product and a term more, of the answer (N, 2, H, W) and the batch."""

    def __init__(self, network: UNet, weight: float, term: Callable[[Tensor, Batch], Tensor], term_weight: float):
        super().__init__(network, weight)
        self.term, self.term_weight = term, term_weight

    def loss(self, answered: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        loss, l1 = super().loss(answered, batch)
        return loss + self.term_weight * self.term(answered[0].float(), batch), l1


def compare_edges(answer: Tensor, batch: Batch) -> Tensor:
    """The L1 of the differences of neighbouring pixels: colours end where things do.

    It stands for a perceptual loss, whose trained network is not at hand.
    """
    wrong = answer - batch.ab
    return wrong.diff(dim=-1).abs().mean() + wrong.diff(dim=-2).abs().mean()


def compare_scales(answer: Tensor, batch: Batch) -> Tensor:
    """The mean L1 of the pictures averaged over areas of 2, 4, 8 and 16 pixels, where crops are so large."""
    wrong = answer - batch.ab
    scales = [scale for scale in _SCALES if scale <= min(wrong.shape[-2:])]
    return torch.stack([F.avg_pool2d(wrong, scale, ceil_mode=True).abs().mean() for scale in scales]).mean()


class Critic(nn.Module):
    """A small PatchGAN of lightness and colours, and what it asks of an answer and of itself (Isola et al. 2017).

    One loss for both: the answer is to look true to a critic that stands still, and the critic is to tell the truth
    from an answer that stands still.
    """

    def __init__(self) -> None:
        super().__init__()
        width = _CRITIC_WIDTH
        self.judge = nn.Sequential(
            *(nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)),
            nn.Conv2d(2 * width, 1, 3, padding=1),
        )

    def forward(self, answer: Tensor, batch: Batch) -> Tensor:
        """Answers (N, 2, H, W) to the sum of both losses."""
        still = {name: weight.detach() for name, weight in self.judge.named_parameters()}
        seen = torch.cat([batch.lightness, answer], 1)  # (N, 3, H, W)
        doubted = F.softplus(-torch.func.functional_call(self.judge, still, (seen,))).mean()
        true = F.softplus(-self.judge(torch.cat([batch.lightness, batch.ab], 1))).mean()
        false = F.softplus(self.judge(seen.detach())).mean()
        return doubted + 0.5 * (true + false)
