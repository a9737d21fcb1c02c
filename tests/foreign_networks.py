"""Networks as people bring them, a few channels wide: each built the way that many networks of its kind are built.

A run reads this file by `--arch`, so it imports nothing of the project. All answer a* and b* over 110 but the last,
which reads and answers sRGB in [-1, 1].
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inner: int, outer: int, size: int = 3, stride: int = 1, groups: int = 1, act: nn.Module | None = None) -> Any:
    """Convolution, batch norm, activation."""
    layer = nn.Conv2d(inner, outer, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outer), act or nn.ReLU(inplace=True))


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which is a convolution where the shape changes."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.relu, self.downsample = nn.ReLU(inplace=True), None
        if stride > 1 or inner != outer:
            self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += shortcut
        return self.relu(out)


class ResidualEncoder(nn.Module):
    """A stem of stride 4 in all, then stages; answers the features of every scale, the picture itself among them."""

    def __init__(self, width: int, stages: int = 2) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(1, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        widths = [width * 2**stage for stage in range(stages)]
        self.layer1 = ResidualBlock(width, width)
        self.layers = nn.ModuleList(ResidualBlock(width, 2 * width, 2) for width in widths[:-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [x, self.relu(self.bn1(self.conv1(x)))]
        features.append(self.layer1(self.maxpool(features[-1])))
        for layer in self.layers:
            features.append(layer(features[-1]))
        return features


class SqueezeBoth(nn.Module):
    """Squeeze and excitation of channels and of places, added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width // 2, 1), nn.ReLU(True), nn.Conv2d(width // 2, width, 1),
            nn.Sigmoid(),
        )  # fmt: skip
        self.places = nn.Sequential(nn.Conv2d(width, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.channels(x) + x * self.places(x)


class LibraryUnet(nn.Module):
    """As segmentation libraries build them: encoder, decoder blocks that may attend, a head that ends in tanh."""

    class Block(nn.Module):
        def __init__(self, inner: int, skip: int, outer: int) -> None:
            super().__init__()
            self.conv1, self.conv2 = conv(inner + skip, outer), conv(outer, outer)
            self.attention1 = SqueezeBoth(inner + skip) if skip else nn.Identity()
            self.attention2 = SqueezeBoth(outer)

        def forward(self, x: Tensor, height: int, width: int, skip: Tensor | None = None) -> Tensor:
            x = F.interpolate(x, size=(height, width), mode="nearest")
            if skip is not None:
                x = self.attention1(torch.cat([x, skip], dim=1))
            return self.attention2(self.conv2(self.conv1(x)))

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.encoder = ResidualEncoder(width)
        self.blocks = nn.ModuleList(
            [self.Block(2 * width, width, width), self.Block(width, width, width), self.Block(width, 0, 8)]
        )
        self.segmentation_head = nn.Sequential(nn.Conv2d(8, 2, 3, padding=1), nn.Identity(), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        shapes = [each.shape[2:] for each in features][::-1]
        skips: list[Tensor | None] = [*features[1:-1][::-1], None]
        y = features[-1]
        for block, (height, width), skip in zip(self.blocks, shapes[1:], skips, strict=True):
            y = block(y, height, width, skip)
        answer: Tensor = self.segmentation_head(y)
        return answer


class InvertedResidual(nn.Module):
    """A depth-wise convolution between two pointwise ones, with squeeze and excitation, as mobile networks have it."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        middle = 3 * inner
        self.expand = conv(inner, middle, 1, act=nn.SiLU(inplace=True))
        self.depthwise = conv(middle, middle, 3, stride, groups=middle, act=nn.SiLU(inplace=True))
        self.reduce, self.grow = nn.Conv2d(middle, 4, 1), nn.Conv2d(4, middle, 1)
        self.project = nn.Sequential(nn.Conv2d(middle, outer, 1, bias=False), nn.BatchNorm2d(outer))
        self.is_residual = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = y * torch.sigmoid(self.grow(F.silu(self.reduce(y.mean((2, 3), keepdim=True)))))
        y = self.project(y)
        return x + y if self.is_residual else y


class MobileEncoderUnet(nn.Module):
    """A mobile encoder that answers a list of features, and a decoder that resizes to each of them."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = conv(1, width, 3, 2, act=nn.SiLU(inplace=True))
        self.stages = nn.ModuleList(
            [
                nn.Sequential(InvertedResidual(width, width, 1)),
                nn.Sequential(InvertedResidual(width, 2 * width, 2), InvertedResidual(2 * width, 2 * width, 1)),
            ]
        )
        self.join, self.last = conv(3 * width, width), conv(width, width)
        self.head = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        coarse = F.interpolate(features[2], size=features[1].shape[-2:], mode="bilinear", align_corners=False)
        y = self.join(torch.cat([coarse, features[1]], 1))
        y = F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)
        answer: Tensor = self.head(self.last(y))
        return answer


class ResidualEncoderUnet(nn.Module):
    """The encoder kept whole and cut into layers, so every weight has two names; transposed convolutions go up."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.base_model = nn.Sequential(
            nn.Conv2d(1, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
            ResidualBlock(width, width), ResidualBlock(width, 2 * width, 2),
        )  # fmt: skip
        base_layers = list(self.base_model.children())
        self.layer0, self.layer1 = nn.Sequential(*base_layers[:3]), nn.Sequential(*base_layers[3:5])
        self.layer2 = base_layers[5]
        self.up1, self.join1 = nn.ConvTranspose2d(2 * width, width, 2, 2), conv(2 * width, width)
        self.up2, self.join2 = nn.ConvTranspose2d(width, width, 4, 2, 1), conv(2 * width, width)
        self.up3 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv_last = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        layer0 = self.layer0(x)
        layer1 = self.layer1(layer0)
        y = self.join1(torch.cat([self.up1(self.layer2(layer1)), layer1], 1))
        y = self.join2(torch.cat([self.up2(y), layer0], 1))
        answer: Tensor = self.conv_last(self.up3(y))
        return answer


class AttentionUnet(nn.Module):
    """Every place of the bottleneck attends to every other."""

    class Attention(nn.Module):
        def __init__(self, width: int, heads: int = 2) -> None:
            super().__init__()
            self.norm, self.heads = nn.GroupNorm(2, width), heads
            self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

        def forward(self, x: Tensor) -> Tensor:
            batch, channels, height, width = x.shape
            q, k, v = self.qkv(self.norm(x)).reshape(batch, 3 * self.heads, -1, height * width).chunk(3, dim=1)
            seen = F.scaled_dot_product_attention(q.transpose(2, 3), k.transpose(2, 3), v.transpose(2, 3))
            return x + self.out(seen.transpose(2, 3).reshape(batch, channels, height, width))

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down1, self.down2 = conv(1, width), conv(width, 2 * width, stride=2)
        self.down3 = conv(2 * width, 4 * width, stride=2)
        self.middle = nn.Sequential(ResidualBlock(4 * width, 4 * width), self.Attention(4 * width))
        self.up2, self.join2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), conv(4 * width, 2 * width)
        self.up1, self.join1 = nn.ConvTranspose2d(2 * width, width, 2, 2), conv(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        middle = self.down2(fine)
        y = self.middle(self.down3(middle))
        y = self.join2(torch.cat([self.up2(y), middle], 1))
        y = self.join1(torch.cat([self.up1(y), fine], 1))
        return torch.tanh(self.head(y))


class Kept:
    """A hook that keeps what a layer answered."""

    def __init__(self, module: nn.Module) -> None:
        self.stored: Tensor | None = None
        module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.stored = output


class ShuffleUp(nn.Module):
    """A convolution to four times the channels, then PixelShuffle, then a blur."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.conv, self.relu = conv(inner, 4 * outer, 1), nn.ReLU(inplace=True)
        self.shuffle = nn.PixelShuffle(2)
        self.blur = nn.Sequential(nn.ReplicationPad2d((1, 0, 1, 0)), nn.AvgPool2d(2, stride=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.blur(self.relu(self.shuffle(self.conv(x))))


class HookedUnet(nn.Module):
    """Made around a body by hooks on it; resizes where the sizes differ, and adds the picture itself at the end."""

    class Block(nn.Module):
        def __init__(self, inner: int, skip: int, outer: int, kept: Kept) -> None:
            super().__init__()
            self.kept, self.up = kept, ShuffleUp(inner, inner // 2)
            self.norm, self.relu = nn.BatchNorm2d(skip), nn.ReLU()
            self.conv1, self.conv2 = conv(inner // 2 + skip, outer), conv(outer, outer)

        def forward(self, x: Tensor) -> Tensor:
            skip = self.kept.stored
            assert skip is not None
            up = self.up(x)
            if up.shape[-2:] != skip.shape[-2:]:
                up = F.interpolate(up, skip.shape[-2:], mode="nearest")
            return self.conv2(self.conv1(self.relu(torch.cat([up, self.norm(skip)], dim=1))))

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        body = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
            ResidualBlock(width, width), ResidualBlock(width, 2 * width, 2),
        )  # fmt: skip
        kept = [Kept(body[2]), Kept(body[4])]
        middle = nn.Sequential(conv(2 * width, 4 * width), conv(4 * width, 2 * width))
        self.layers = nn.ModuleList(
            [
                body, nn.BatchNorm2d(2 * width), nn.ReLU(), middle,
                self.Block(2 * width, width, width, kept[1]), self.Block(width, width, width, kept[0]),
                ShuffleUp(width, width), ResidualBlock(width + 1, width + 1), nn.Conv2d(width + 1, 2, 1),
            ]
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers[:-2]:
            y = layer(y)
        if y.shape[-2:] != x.shape[-2:]:
            y = F.interpolate(y, x.shape[-2:], mode="nearest")
        answer: Tensor = self.layers[-1](self.layers[-2](torch.cat([y, x], dim=1)))
        return answer


class EightLevelGenerator(nn.Module):
    """Each level holds the next one and joins what goes in with what comes out; one pixel is left of 256."""

    class Level(nn.Module):
        def __init__(self, outer: int, inner: int, inside: nn.Module | None, picture: int = 0) -> None:
            super().__init__()
            self.is_first = picture > 0
            down = nn.Conv2d(picture or outer, inner, 4, 2, 1, bias=False)
            up = nn.ConvTranspose2d(inner if inside is None else 2 * inner, outer, 4, 2, 1, bias=self.is_first)
            if inside is None:
                layers = [nn.LeakyReLU(0.2, True), down, nn.ReLU(True), up, nn.BatchNorm2d(outer)]
            elif self.is_first:
                layers = [down, inside, nn.ReLU(True), up, nn.Tanh()]
            else:
                layers = [nn.LeakyReLU(0.2, True), down, nn.BatchNorm2d(inner), inside, nn.ReLU(True), up]
                layers += [nn.BatchNorm2d(outer), nn.Dropout(0.5)]
            self.model = nn.Sequential(*layers)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.model(x)
            return answer if self.is_first else torch.cat([x, answer], 1)

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        level = self.Level(8 * width, 8 * width, None)
        for _ in range(3):
            level = self.Level(8 * width, 8 * width, level)
        for factor in (4, 2, 1):
            level = self.Level(factor * width, 2 * factor * width, level)
        self.model = self.Level(2, width, level, picture=1)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.model(x)
        return answer


class BinClassifier(nn.Module):
    """Classifies each place into 313 colours at a quarter of the size, and answers their annealed mean."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.model1 = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(True), nn.BatchNorm2d(width))
        self.model2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(True), nn.BatchNorm2d(2 * width))
        self.model3 = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, 2, 2, dilation=2), nn.ReLU(True))
        self.model8 = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.ReLU(True), nn.Conv2d(width, 313, 1)
        )
        self.softmax, self.model_out = nn.Softmax(dim=1), nn.Conv2d(313, 2, 1, bias=False)
        self.upsample4 = nn.Upsample(scale_factor=4, mode="bilinear")
        nn.init.uniform_(self.model_out.weight, -1, 1)

    def forward(self, x: Tensor) -> Tensor:
        bins = self.model8(self.model3(self.model2(self.model1((100 * x - 50) / 100)))) / 0.38
        answer: Tensor = self.upsample4(self.model_out(self.softmax(bins)))
        return answer


class PictureGenerator(nn.Module):
    """sRGB in [-1, 1] to sRGB in [-1, 1]: reflection padding, instance norm, residual blocks."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            for _ in range(2):
                layers += [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width), nn.ReLU(True)]
            self.conv_block = nn.Sequential(*layers[:-1])

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = x + self.conv_block(x)
            return answer

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        norm = functools.partial(nn.InstanceNorm2d, affine=False)
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), norm(width), nn.ReLU(True)]
        layers += [nn.Conv2d(width, 2 * width, 3, 2, 1), norm(2 * width), nn.ReLU(True), self.Block(2 * width)]
        layers += [nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1), norm(width), nn.ReLU(True)]
        self.model = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.model(x)
        return answer
