"""A crop of a photograph to train on: where chance puts it, how large it may be, and its pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median_low

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from colorpress.core.config import Recipe
from colorpress.core.machine import free_memory_bytes
from training.photos import Photo, load_rgb

# Random-resized crop (Szegedy et al. 2015): width over height.
_ASPECT = (3 / 4, 4 / 3)
# How much larger than in its photograph things in a crop of the middle side may be. Enlarged further they are not what
# the network will be shown: of photographs of 100 pixels, crops enlarged up to 3.7 times taught a student C 0.66, such
# ones C 0.83.
_MOST_ENLARGED = 1.25
# Sides of crops are whole multiples of this. Of 16, which no UNet would have to pad, a student learned a fifth faster
# and kept C 0.80 and 0.63 in two trainings instead of 0.85 and 0.83: photographs are padded, too.
_SIDE_STEP = 4
# Growing crops grow in this share of all epochs.
_GROWING_SHARE = 0.8
# Share of the free memory that decoded photographs may fill, of all loading processes together.
_MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class CropDraw:
    """What chance decided of a crop; where it lies follows from the photograph's width and height.

    Attributes:
        area: share of the photograph's area. `aspect`: width over height (Szegedy et al. 2015).
        left, top: share of the room that is left beside and above the crop.
        flip: whether it is mirrored.
        tone: a standard normal value, for changes of lightness.
    """

    area: float
    aspect: float
    left: float
    top: float
    flip: bool
    tone: float

    @staticmethod
    def by(seed: Sequence[int], crop_share: float) -> CropDraw:
        """The draw of a seed: the same seed gives the same crop."""
        random = np.random.default_rng(seed)
        area, aspect = random.uniform(crop_share, 1.0), float(np.exp(random.uniform(*np.log(_ASPECT))))
        left, top, flip = random.random(), random.random(), random.random() < 0.5
        return CropDraw(area, aspect, left, top, flip, random.standard_normal())

    def box(self, width: float, height: float) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the crop in a photograph of this size."""
        across = min(np.sqrt(self.area * width * height * self.aspect), width)
        down = min(np.sqrt(self.area * width * height / self.aspect), height)
        left, top = self.left * (width - across), self.top * (height - down)
        return (left, top, left + across, top + down)


@dataclass(frozen=True)
class CropSides:
    """The sides of the square crops of a training, in pixels: all of a batch have the same.

    A network that is only ever shown one size learns what the edges of that size are like, and is worse at every other:
    a student of crops of 96 pixels kept G 0.94 of photographs reduced to 96 pixels and 0.82 of the same at 100.

    Attributes:
        recipe: its imgsz, size_jitter, start_imgsz, epochs and crop_share.
        usual: the short side of half of the photographs: crops are no larger.
    """

    recipe: Recipe
    usual: int

    @staticmethod
    def of(photos: Sequence[Photo], recipe: Recipe) -> CropSides:
        return CropSides(recipe, median_low(min(photo.width, photo.height) for photo in photos))

    @property
    def middle(self) -> int:
        """Of full-grown crops."""
        return self._side(self.recipe.imgsz, 1.0)

    @property
    def largest(self) -> int:
        """Of all crops."""
        return self._side(self.recipe.imgsz, 1.0 + self.recipe.size_jitter)

    def draw(self, seed: int, epoch: int, batch: int) -> int:
        """The side of the crops of a batch, of an epoch from 1.

        From `start_imgsz` crops grow to `imgsz`: what small ones teach costs a fraction, and the last fifth of the
        epochs teaches the rest. Source: progressive learning (Tan and Le 2021, EfficientNetV2).
        """
        recipe, side = self.recipe, float(self.recipe.imgsz)
        if 0 < recipe.start_imgsz < side:
            grown = min(1.0, max(0, epoch - 1) / max(1.0, _GROWING_SHARE * recipe.epochs))
            side = recipe.start_imgsz + grown * (side - recipe.start_imgsz)
        chance = np.random.default_rng((seed, epoch, batch)).uniform(-1.0, 1.0)
        return self._side(side, 1.0 + recipe.size_jitter * chance)

    def least_share(self, photo: Photo) -> float:
        """The smallest share of a photograph's area that a crop shows: `crop_share`, or what is enlarged but little."""
        unenlarged = (self.middle / _MOST_ENLARGED) ** 2 / (photo.width * photo.height)
        return min(1.0, max(self.recipe.crop_share, unenlarged))

    def _side(self, side: float, factor: float) -> int:
        """`factor` times `side`, or times the usual one where that is smaller, and never larger than that."""
        wanted = min(factor * min(side, self.usual), self.usual)
        return max(min(_SIDE_STEP, self.usual), int(wanted // _SIDE_STEP) * _SIDE_STEP)


@dataclass
class KeptPhotos:
    """Photographs no larger than crops need them, which stay in memory as far as there is room for them.

    Attributes:
        sides: of the crops.
        max_pixels: larger photographs are refused.
        processes: that many share the room.
    """

    sides: CropSides
    max_pixels: int
    processes: int = 1
    _kept: dict[str, NDArray[np.uint8]] = field(default_factory=dict, init=False)
    _room_bytes: int | None = field(default=None, init=False)

    def read(self, photo: Photo) -> NDArray[np.uint8]:
        """sRGB (H, W, 3), so large that the smallest part is a crop of the largest side, if the file has the pixels.

        Raises:
            InputError: the photograph cannot be read.
        """
        found = self._kept.get(photo.sha256)
        if found is None:
            # In a square photograph this short side gives the crop its pixels; in a longer one, more.
            short_side = math.ceil(self.sides.largest / math.sqrt(self.sides.least_share(photo) * _ASPECT[0]))
            found = load_rgb(photo.path, max_pixels=self.max_pixels, short_side=short_side)
            self._keep(photo, found)
        return found

    def _keep(self, photo: Photo, pixels: NDArray[np.uint8]) -> None:
        if self._room_bytes is None:
            self._room_bytes = _free_bytes() // max(1, self.processes)
        if pixels.nbytes <= self._room_bytes:
            self._room_bytes -= pixels.nbytes
            self._kept[photo.sha256] = pixels


def _free_bytes() -> int:
    return int(_MEMORY_SHARE * free_memory_bytes())


def cut_crop(pixels: NDArray[np.uint8], draw: CropDraw, imgsz: int) -> NDArray[np.uint8]:
    """The crop that was drawn of a photograph (H, W, 3): (imgsz, imgsz, 3)."""
    picture = Image.fromarray(pixels)
    box = draw.box(*picture.size)
    crop = np.array(picture.resize((imgsz, imgsz), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0))
    return np.ascontiguousarray(crop[:, ::-1]) if draw.flip else crop
