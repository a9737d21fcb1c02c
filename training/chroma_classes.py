"""A second task, for training alone: name the class of colour of each quarter-size pixel.

Where several colours are possible L1 is content with a brownish grey, whatever the thing is; the cross-entropy of the
classes goes on telling them apart, and the features it asks for serve the L1 too. Source of the classes: Zhang, Isola
and Efros 2016; of the head that is thrown away afterwards: Lee et al. 2015 (deep supervision).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.losses import Batch, Task
from training.network import pad_to_multiple, upsample_bilinear
from training.unet import UNet

# A grid over ab: cells of 0.1 (12.8 in a* and b*), from -0.8 to 0.8; colours beyond belong to the outermost cells.
CLASSES_PER_AXIS = 16
_CELL = 0.1
_LEVELS_UP = 2  # of the decoder: a quarter of the height and width


class ColourClassTask(Task):
    """L1 to the truth, and a 1x1 convolution that names colour classes from the features decoded at quarter size.

    The convolution starts from zero: every class is equally likely, and no random number is drawn.

    Args:
        network: with at least one decoder level.
        weight: of the classes beside the L1.
    """

    network: UNet

    def __init__(self, network: UNet, weight: float) -> None:
        super().__init__(network)
        self.weight = weight
        levels_up = min(_LEVELS_UP, len(network.decoder) - 1)
        self.level, self.stride = -1 - levels_up, network.output_stride << levels_up
        channels = [m.out_channels for m in network.decoder[self.level].modules() if isinstance(m, nn.Conv2d)][-1]
        self.head = nn.Conv2d(channels, CLASSES_PER_AXIS**2, 1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, lightness: Tensor) -> tuple[Tensor, Tensor]:
        """L (N, 1, H, W) to the network's ab, and to logits (N, 256, H / 4, W / 4, rounded up)."""
        height, width = lightness.shape[-2:]
        coarse, levels = self.network.forward_levels(pad_to_multiple(lightness, self.network.size_multiple))
        answer = upsample_bilinear(coarse, self.network.output_stride)[..., :height, :width]
        return answer, self.head(levels[self.level])

    def loss(self, answered: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        answer, logits = answered
        l1 = (answer.float() - batch.ab).abs().mean()
        return l1 + self.weight * class_loss(logits, batch.ab, self.stride), l1.detach()


def class_loss(logits: Tensor, ab: Tensor, stride: int) -> Tensor:
    """The mean cross-entropy of logits (N, 256, >= H / stride, >= W / stride) with the classes of `ab` (N, 2, H, W).

    Classes are those of the mean colours of areas of stride x stride pixels.
    """
    pooled = F.avg_pool2d(ab, stride, ceil_mode=True)
    cells = ((pooled / _CELL).floor() + CLASSES_PER_AXIS // 2).clamp(0, CLASSES_PER_AXIS - 1).long()
    height, width = pooled.shape[-2:]
    classes = cells[:, 0] * CLASSES_PER_AXIS + cells[:, 1]
    return F.cross_entropy(logits[..., :height, :width].float(), classes)
