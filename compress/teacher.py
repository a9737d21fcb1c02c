"""Asking the teacher once: best.pt's answers to whole photographs, kept for every network that learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from colorpress.core.console import progress
from colorpress.core.processes import process_count, process_rank, sum_over_processes_
from training.batches import AnswerFolder, whole_photos
from training.lab import rgb_to_l_ab
from training.network import ColorNetwork
from training.photos import Photo


def ask_teacher(
    teacher: ColorNetwork,
    photos: Sequence[Photo],
    folder: Path,
    *,
    short_side: int,
    max_pixels: int,
    device: torch.device,
) -> AnswerFolder:
    """Ask `teacher` about each photograph that `folder` has no answer to yet.

    A teacher is needed thousands of times for the same photographs, and costs more than the student it teaches. So it
    answers once, to the whole photograph, which also shows it more than a crop would. Processes of torchrun share the
    work; one that does not see what the others wrote does it all.

    Args:
        teacher: on `device`; it is asked in eval mode.
        folder: holds answers of this very network at this `short_side`, and of no other.
        short_side: of the photographs, at most, in pixels; nothing is enlarged.
        max_pixels: larger photographs are left out with one warning, as those that cannot be read.
    Raises:
        MachineError: the folder cannot be written; answers that are there already are kept.
    """
    answers = AnswerFolder(folder)

    def find_missing() -> list[Photo]:
        return [photo for photo in photos if not answers.path_of(photo).is_file()]

    def ask(missing: Sequence[Photo]) -> None:
        teacher.eval()
        with progress("asking best.pt", len(missing)) as bar, torch.inference_mode():
            for photo, rgb in whole_photos(missing, short_side=short_side, max_pixels=max_pixels):
                answers.write(photo, teacher(rgb_to_l_ab(rgb.to(device))[0]))
                bar.advance()

    ask(find_missing()[process_rank() :: process_count()])
    if process_count() > 1:
        sum_over_processes_(torch.zeros(()))  # waits for all
        ask(find_missing())
    return answers
