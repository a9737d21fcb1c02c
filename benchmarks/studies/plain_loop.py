"""The loop that anybody writes first: what a recipe has to be better than, in colour and in images per second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from colorpress.core.config import UNetConfig
from training.crops import CropDraw, cut_crop
from training.device import choose_precision
from training.lab import rgb_to_l_ab
from training.photos import Photo
from training.unet import UNet, UNetPlan


@dataclass(frozen=True)
class PlainLoop:
    """AdamW on the L1 of random resized crops, bf16 by autocast where the processor has it; the last weights are kept.

    In its fast form: channels last, and the fused optimizer.

    Attributes:
        unet: the network, with PyTorch's own first weights.
        imgsz, batch_size, crop_share: of the crops, as in `Recipe`.
        learning_rate: at first.
        falls: to zero by a cosine over all steps; else it is constant.
    """

    unet: UNetConfig
    imgsz: int
    batch_size: int
    crop_share: float
    learning_rate: float
    falls: bool

    def train(self, photos: Sequence[Photo], crops: int, *, seed: int, device: torch.device, workers: int) -> UNet:
        """The network after so many crops, in whole batches, one at least."""
        steps = max(1, crops // self.batch_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = UNet(UNetPlan.classic(self.unet.base, self.unet.depth, self.unet.upsample))
            network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
            optimizer = torch.optim.AdamW(network.parameters(), lr=self.learning_rate, fused=True)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._rate_at(step / steps))
            loader = DataLoader(
                _PlainCrops(photos, self),
                batch_size=self.batch_size,
                shuffle=True,
                num_workers=workers,
                drop_last=len(photos) >= self.batch_size,
            )
            dtype, done = choose_precision("auto", device), 0
            while done < steps:
                for rgb in islice(loader, steps - done):
                    lightness, ab = rgb_to_l_ab(rgb.to(device, non_blocking=True))  # (N, 1, S, S), (N, 2, S, S)
                    lightness = lightness.contiguous(memory_format=torch.channels_last)
                    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                        answer = network(lightness)
                    loss = F.l1_loss(answer.float(), ab)
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
                    schedule.step()
                    done += 1
        return network.cpu().eval()

    def _rate_at(self, done_share: float) -> float:
        return 0.5 * (1 + float(np.cos(np.pi * done_share))) if self.falls else 1.0


@dataclass(frozen=True)
class _PlainCrops(Dataset[Tensor]):
    photos: Sequence[Photo]
    loop: PlainLoop

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.photos[index].path) as file:
            pixels = np.asarray(file.convert("RGB"))  # (H, W, 3)
        draw = CropDraw.by((int(torch.randint(2**31, ())),), self.loop.crop_share)
        return torch.from_numpy(cut_crop(pixels, draw, self.loop.imgsz)).permute(2, 0, 1)  # (3, S, S), uint8
