"""A trained model that somebody brings becomes the best.pt of a run folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from colorpress.core.errors import ConfigError
from colorpress.core.files import sha256_bytes, sha256_file, write_bytes
from colorpress.core.processes import share_answer
from colorpress.core.stages import forget_stage
from training.checkpoint import dump_checkpoint
from training.curve_prose import INFERENCE_NAME
from training.fitting import forget_fit
from training.run_folder import Run


def adopt_checkpoint(run: Run, checkpoint: Path | None) -> None:
    """Copy a trained model into the run folder as its best.pt; one of another program in the format of this one.

    The main process does, and the others of torchrun wait for it. None leaves the folder as it is.

    Raises:
        ConfigError: the folder holds another best.pt, which would be lost; or a foreign network is not named.
        InputError: the checkpoint cannot be used.
    """
    if checkpoint is not None:
        share_answer(lambda: _adopt(run, checkpoint))


def _adopt(run: Run, checkpoint: Path) -> None:
    found = run.load(checkpoint)
    found.build_network()
    content = checkpoint.read_bytes()
    if found.converted:
        content = dump_checkpoint(replace(found, extra={"stage": "convert", "converted_sha256": found.sha256}))
    if run.best_path.exists() and sha256_file(run.best_path) == sha256_bytes(content):
        return
    if run.best_path.exists() and not run.force:
        raise ConfigError(
            "folder", run.folder, "holds another best.pt", "choose another --output-dir, or replace it with --force"
        )
    # What told of the model that was there would be read as telling of this one.
    forget_fit(run.folder / "last.pt")
    for name in ("history.csv", "training_loss.png", INFERENCE_NAME):
        (run.folder / name).unlink(missing_ok=True)
    forget_stage(run.folder, "train")
    write_bytes(run.best_path, content)
