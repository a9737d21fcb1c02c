"""What a trained network answered to whole photographs, kept in files: what another network learns from."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from colorpress.core.errors import InputError
from colorpress.core.files import write_bytes
from training.photos import Photo

# Chroma is smooth: averaged over 4x4 pixels an answer is no worse, and is sixteen times smaller.
ANSWER_STRIDE = 4


@dataclass(frozen=True)
class AnswerFolder:
    """One file for each photograph, named after its content: ab/128, float16 (2, H / 4, W / 4)."""

    folder: Path

    def path_of(self, photo: Photo) -> Path:
        """Where the answer to `photo` is."""
        return self.folder / f"{photo.sha256}.npy"

    def write(self, photo: Photo, answer: Tensor) -> Path:
        """Keep the answer (1, 2, H, W) to `photo`, averaged over areas of 4x4 pixels."""
        height, width = answer.shape[-2:]
        size = (max(1, round(height / ANSWER_STRIDE)), max(1, round(width / ANSWER_STRIDE)))
        buffer = io.BytesIO()
        np.save(buffer, F.interpolate(answer, size, mode="area")[0].cpu().numpy().astype(np.float16))
        return write_bytes(self.path_of(photo), buffer.getvalue())

    def read(self, photo: Photo) -> NDArray[np.float16]:
        """The answer to `photo` as it was written.

        Raises:
            InputError: there is none, or its file is damaged.
        """
        path = self.path_of(photo)
        try:
            answer: NDArray[np.float16] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            hint = "remove the file: answers that are missing are asked for again"
            raise InputError("answer", path, "is missing or damaged", hint) from error
        return answer
