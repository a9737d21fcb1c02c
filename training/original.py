"""The original of a run folder, `best.pt`: trained here from photographs, or brought by somebody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from colorpress.core.config import ArchConfig, Recipe, UNetConfig, option_name
from colorpress.core.console import say, warn
from colorpress.core.errors import ConfigError, InputError
from colorpress.core.files import sha256_bytes, sha256_file, write_bytes
from colorpress.core.processes import is_main_process, share_answer
from colorpress.core.stages import StageRecord, forget_stage
from colorpress.core.text import align_cells
from training.checkpoint import Checkpoint, dump_checkpoint, load_checkpoint, save_checkpoint
from training.cie import AB_SCALE
from training.convention_search import Finding, cut_squares, find_conventions
from training.conventions import Conventions
from training.device import choose_device, torch_threads
from training.fitting import FitFiles, FitJob, FitResult, fit_network, forget_fit
from training.foreign import AdaptedNetwork, ForeignArchitecture
from training.foreign_source import load_source
from training.history import EXPLANATION_NAME, plot_history, write_history
from training.losses import ChromaClassLoss, L1Loss, Loss
from training.metrics import validate_l1
from training.network import copy_weights
from training.photo_split import PhotoSplit
from training.run_folder import Run
from training.unet import UNet, UNetPlan, build_unet, count_parameters


def train(run: Run, photos: PhotoSplit) -> StageRecord:
    """Train the original: best.pt, last.pt, history.csv, training_loss.png."""
    settings = run.settings

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        choose_device(settings.machine.device)
        if run.force and is_main_process():
            forget_fit(run.folder)
        recipe = settings.train.recipe(settings.fit)
        # best.pt's epoch is chosen by all of them: that can only flatter best.pt, never what is compared with it.
        job = FitJob(photos.train, photos.val, recipe, settings.data, settings.machine)
        best = train_unet(job, settings.unet, run.folder, restart=run.force).best
        params = count_parameters(best.build_network())
        files = [run.folder / name for name in ("best.pt", "history.csv", "training_loss.png")]
        return files, {"epoch": best.epoch, "val_l1": best.val_l1, "params": params}

    start = settings.unet.start_from
    if start and start.resolve() == run.best_path.resolve():
        hint = "choose another --output-dir: what is started from would be overwritten"
        raise ConfigError("option", "--start-from", f"names the best.pt of '{run.folder}' itself", hint)
    used = {**vars(settings.unet), **vars(settings.train), **vars(settings.fit), **run.data_key(photos)}
    return run.do("train", action, inputs=[start] if start else [], settings={**used, "start_from": bool(start)})


def train_unet(job: FitJob, unet: UNetConfig, folder: Path, *, restart: bool = False) -> FitResult:
    """Train a UNet from L to ab; writes best.pt, last.pt, history.csv and training_loss.png.

    A training that was interrupted in `folder` goes on; with `restart`, one with other settings that is in the way is
    replaced. Where the weights it started from are better than every epoch, best.pt holds those, as of epoch 0.

    Raises: as `fit_network`; InputError, where there is no UNet to start from; MachineError, where the device is
        missing or the folder cannot be written.
    """
    extra = {"stage": "train", "train_photos": len(job.train), "val_photos": len(job.val)}
    with torch.random.fork_rng(devices=[]), torch_threads(job.machine.threads):
        torch.manual_seed(job.data.seed)
        network = new_unet(unet) if unet.start_from is None else _load_start(unet.start_from)
        started_l1 = None if unet.start_from is None else _validate(network, job)
        start = copy_weights(network)
        criterion = choose_loss(network, job.recipe)
        fitted = fit_network(criterion, job, FitFiles(folder / "best.pt", extra, restart), label="train")
    best_l1 = fitted.best.val_l1
    if started_l1 is not None and best_l1 is not None and started_l1 < best_l1:
        say(f"train: no epoch is better than the start, validation L1 {started_l1:.4f}, which is kept")
        best = replace(fitted.best, state_dict=start, epoch=0, val_l1=started_l1)
        if is_main_process():
            save_checkpoint(folder / "best.pt", best)
        fitted = replace(fitted, best=best)
    if is_main_process():
        write_history(folder / "history.csv", fitted.history)
        plot_history(folder / "training_loss.png", fitted.history)
    return fitted


def choose_loss(network: UNet, recipe: Recipe) -> Loss:
    """What a recipe trains a UNet for; sets the network's dropout."""
    network.dropout.p = recipe.dropout
    # Classes are named from what a decoder makes; a student may have none.
    if recipe.class_weight and len(network.decoder):
        return ChromaClassLoss(network, recipe.class_weight)
    return L1Loss(network)


def new_unet(unet: UNetConfig) -> UNet:
    """A network that answers grey, the best answer that knows nothing: it has no random colours to unlearn."""
    network = UNet(UNetPlan.classic(unet.base, unet.depth, unet.upsample))
    for parameter in network.head.parameters():
        nn.init.zeros_(parameter)
    return network


def _load_start(path: Path) -> UNet:
    found = load_checkpoint(path)
    if not isinstance(found.architecture, UNetPlan):
        why = "holds a network that is not a UNet of colorpress"
        raise InputError("checkpoint", path, why, "train it further where it comes from")
    return build_unet(found.architecture, found.state_dict)


def _validate(network: UNet, job: FitJob) -> float:
    """The L1 (ab/128) that a network starts with, on the device that it is trained on."""
    device, short_side, max_pixels = choose_device(job.machine.device), job.recipe.val_size, job.data.max_pixels
    return validate_l1(network.to(device), job.val, short_side=short_side, max_pixels=max_pixels, device=device)


@dataclass(frozen=True)
class Adopted:
    """A checkpoint to be the original, by what conventions its network is asked if it is foreign, and what says so.

    Attributes:
        finding: what was tried on photographs; None where nothing had to be.
    """

    checkpoint: Checkpoint
    finding: Finding | None = None

    def to_lines(self) -> list[str]:
        """What was tried, and what the network is, for people."""
        architecture = self.checkpoint.architecture
        if not isinstance(architecture, ForeignArchitecture):
            return ["a network of colorpress' own"]
        table = align_cells(self.finding.to_rows()) if self.finding else []
        return [*table, f"{architecture.source} {architecture.conventions.describe()}; takes {architecture.sizes}"]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-ready primitives."""
        architecture = self.checkpoint.architecture
        taken = sizes = None
        if isinstance(architecture, ForeignArchitecture):
            taken, sizes = architecture.conventions.options(), vars(architecture.sizes)
        tried = [each.to_dict() for each in self.finding.trials] if self.finding else []
        doubt = self.finding.doubt if self.finding else ""
        name = architecture.describe()["name"]
        return {"network": name, "conventions": taken, "sizes": sizes, "doubt": doubt, "tried": tried}


def read_named(run: Run, checkpoint: Path | None) -> None:
    """What the user names of a trained model is read before all photographs are, which of many takes minutes.

    Args:
        checkpoint: the folder's own best.pt, or one that was given.
    Raises:
        ConfigError: there is no such file, --arch names no code that runs, or --state-key is of no use.
        InputError: the checkpoint cannot be used.
    """
    if arch := run.settings.arch.arch:
        load_source(arch)
    if checkpoint is None:
        return
    is_converted = run.load(checkpoint).converted
    if run.settings.arch.state_key and not is_converted and checkpoint != run.best_path:
        why = f"says where a file of another program has its weights, and {checkpoint} is colorpress' own"
        raise ConfigError("option", "--state-key", why, "leave it out, or give another --checkpoint")


def adopt_checkpoint(
    run: Run, checkpoint: Path | None, photos: PhotoSplit | None = None, *, anew: bool = False
) -> Adopted | None:
    """Copy a trained model into the run folder as its best.pt; one of another program in the format of this one.

    Without a checkpoint the folder is as it was, and the answer None; so it is in all processes but the main one.

    Args:
        photos: on those to train on the conventions of a foreign network are tried that the options leave open.
        anew: try them although the folder's best.pt says what was found for the same file, or nothing is left open.
    Raises:
        ConfigError: the folder holds another best.pt, which would be lost; or a foreign network is not named.
        InputError: the checkpoint cannot be used.
    """
    if checkpoint is None:
        return None
    kept: list[Adopted] = []  # by the main process alone: the others of torchrun read best.pt
    share_answer(lambda: kept.append(_adopt(run, checkpoint, photos, anew)))
    return kept[0] if kept else None


def settle_conventions(run: Run, checkpoint: Path, photos: PhotoSplit | None) -> Run:
    """The run with the conventions of a foreign checkpoint as if they were given: for stages that read it as it is.

    Raises: as `adopt_checkpoint`.
    """
    if photos is None or not run.settings.arch.left_open or run.settings.arch.arch is None:
        return run

    def settle() -> ArchConfig:
        found = _settle(run, run.load(checkpoint), photos, anew=False).checkpoint
        return found.arch if found.converted else run.settings.arch

    return replace(run, settings=replace(run.settings, arch=share_answer(settle)))


def _settle(run: Run, found: Checkpoint, photos: PhotoSplit | None, *, anew: bool) -> Adopted:
    """Find the conventions that are left open of a foreign network that another program saved."""
    architecture, arch = found.architecture, found.arch
    if not found.converted or not isinstance(architecture, ForeignArchitecture):
        return Adopted(found)
    known = None if anew or run.force else _find_recorded(run, found)
    finding = None
    if known is None and photos is not None and (anew or arch.left_open):
        squares = cut_squares(photos.train, architecture.sizes, max_pixels=run.settings.data.max_pixels)
        network = _with_conventions(found, architecture.conventions).build_network()
        assert isinstance(network, AdaptedNetwork)
        finding = find_conventions(network, arch.conventions, squares)
        _say_found(found, finding)
        known = finding.taken
    return Adopted(found if known is None else _with_conventions(found, known), finding)


def _with_conventions(found: Checkpoint, known: Conventions) -> Checkpoint:
    assert isinstance(found.architecture, ForeignArchitecture)
    architecture = replace(found.architecture, conventions=known)
    return replace(found, architecture=architecture, arch=replace(found.arch, **known.options()))


def _find_recorded(run: Run, found: Checkpoint) -> Conventions | None:
    """What the folder's best.pt says of the same file, where the options say nothing else."""
    if not run.best_path.is_file():
        return None
    try:
        best = load_checkpoint(run.best_path)
    except InputError:
        return None
    if best.extra.get("converted_sha256") != found.sha256 or not isinstance(best.architecture, ForeignArchitecture):
        return None
    known = best.architecture.conventions
    return known if known.agrees(found.arch.conventions) else None


def _say_found(found: Checkpoint, finding: Finding) -> None:
    name = "the checkpoint" if found.path is None else found.path.name
    if not finding.doubt:
        say(f"{name}: {finding.describe()}")
    else:
        known, unknown = (_list_options(each) for each in (found.arch.conventions, found.arch.left_open))
        advice = " or ".join([*([f"give {unknown}"] if unknown else []), *([f"leave out {known}"] if known else [])])
        nearest = f" (nearest: {finding.trials[0].conventions.as_arguments()})" if finding.trials else ""
        warn(f"{name}: {finding.doubt}. It is taken for one that {finding.taken.describe()}: else {advice}{nearest}")
    if "ab_scale" in found.arch.left_open and finding.taken.output != "rgb" and finding.taken.ab_scale == AB_SCALE:
        warn(f"--ab-scale is not given: {name} is taken to answer a*b* / {AB_SCALE:g}; photographs hardly tell")


def _list_options(names: Iterable[str]) -> str:
    return ", ".join(f"--{option_name(each)}" for each in names)


def _adopt(run: Run, checkpoint: Path, photos: PhotoSplit | None, anew: bool) -> Adopted:
    adopted = _settle(run, run.load(checkpoint), photos, anew=anew)
    found = adopted.checkpoint
    found.build_network()
    content = checkpoint.read_bytes()
    if found.converted:
        content = dump_checkpoint(replace(found, extra={"stage": "convert", "converted_sha256": found.sha256}))
    if run.best_path.exists() and sha256_file(run.best_path) == sha256_bytes(content):
        return adopted
    if run.best_path.exists() and not run.force:
        hint = "choose another --output-dir, or replace it with --force"
        raise ConfigError("folder", run.folder, "holds another best.pt", hint)
    # What told of the model that was there would be read as telling of this one. Where there was none, it is no file
    # of ours.
    if run.best_path.exists():
        forget_fit(run.folder)
        for name in ("history.csv", "training_loss.png", EXPLANATION_NAME):
            (run.folder / name).unlink(missing_ok=True)
        forget_stage(run.folder, "train")
    write_bytes(run.best_path, content)
    return adopted
