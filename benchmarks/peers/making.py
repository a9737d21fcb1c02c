"""Peers made from best.pt and the training photographs, each by its own recipe; one that fails ends nothing else.

What was made from the same best.pt, photographs, recipe and versions is kept. A peer that failed is tried again the
next time.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.environments import Environment, find_environment, name_of, run_logged
from benchmarks.peers.peer_list import BEST, Peer, with_parents
from benchmarks.peers.torch_pruning_recipe import make_pruned
from benchmarks.variants import Variant, describe_variant
from colorpress.core.console import say, warn
from colorpress.core.errors import ColorpressError, MachineError
from colorpress.core.files import write_bytes, write_json
from colorpress.core.source_code import hash_code
from compress.export_stages import export
from compress.ranking import count_macs
from training.batches import whole_photos
from training.lab import rgb_to_l_ab
from training.photo_split import PhotoSplit
from training.photos import Photo
from training.run_folder import Run
from training.unet import count_parameters

CALIBRATION_PHOTOS = 300
_HERE = Path(__file__).resolve().parent
# In this process, on the project's own loader and training loop; any other recipe is a module of its own process.
_TRAINING_RECIPE = "torch_pruning_recipe"


@dataclass(frozen=True)
class MadePeer:
    """What became of a peer.

    Attributes:
        status: "ok", "not installed" or "error"; `error` says why.
        path: its model; None where it is not there.
        seconds: that making it took, its parents included and installation not; None where nothing was made.
        versions: of its packages.
        params, macs: of its network; 0 where they are unknown.
    """

    peer: Peer
    status: str
    error: str = ""
    path: Path | None = None
    seconds: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    params: int = 0
    macs: int = 0

    def describe(self, run: Run) -> list[Variant]:
        """Its variants, one for each runtime; none where it failed."""
        if self.path is None:
            return []
        name = self.peer.name.partition(" @ ")[0]
        others = [f"{name} @ {runtime}" for runtime in self.peer.runtimes[1:]]
        return [
            describe_variant(
                row_name,
                self.path,
                runtime=runtime,
                params=self.params or None,
                macs=self.macs,
                macs_size=run.settings.time.bench_size[0],
                arch=run.load(self.path).arch if self.path.suffix == ".pt" else None,
                peer=self.peer.name != BEST,
            )
            for row_name, runtime in zip([self.peer.name, *others], self.peer.runtimes, strict=True)
        ]


def make_peers(run: Run, photos: PhotoSplit, peers: Sequence[Peer]) -> list[MadePeer]:
    """Make every peer, and those that they are made from.

    Args:
        run: whose folder holds best.pt.
    Returns:
        What became of `peers`, in their order.
    """
    export(run, run.best_path, BEST)
    calibration = write_calibration(run, photos.train[:CALIBRATION_PHOTOS])
    start = Peer(BEST, "", "", "", (), ())
    made = {BEST: MadePeer(start, "ok", path=run.folder / BEST / "model.onnx", **_count(run, run.best_path))}
    for peer in with_parents(peers):
        parent = made[peer.parent]
        if parent.path is None:
            made[peer.name] = MadePeer(peer, "error", f"there is no {peer.parent} to make it from")
            continue
        try:
            made[peer.name] = _make_peer(run, photos, peer, parent, parent.path, calibration)
        except ColorpressError as error:
            status = "not installed" if error.what == "environment" else "error"
            made[peer.name] = MadePeer(peer, status, error.why)
            warn(f"{peer.name}: {status}: {error.why}; {error.hint}")
    return [made[peer.name] for peer in peers]


def _count(run: Run, checkpoint: Path) -> dict[str, Any]:
    """Parameters and multiply-accumulates, as `MadePeer` has them."""
    network, size = run.load(checkpoint).build_network(), run.settings.time.bench_size[0]
    return {"params": count_parameters(network), "macs": count_macs(network, height=size, width=size)}


def write_calibration(run: Run, photos: Sequence[Photo]) -> Path:
    """The folder with the L of each photograph, whole and of the size that is evaluated, as .npy files.

    All recipes calibrate on these.
    """
    size, max_pixels = run.settings.score.eval_size, run.settings.data.max_pixels
    folder = run.folder / ".peers" / "calibration"

    def action() -> tuple[list[Path], Mapping[str, Any]]:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.npy"):
            old.unlink()
        paths = []
        for number, (_, rgb) in enumerate(whole_photos(photos, short_side=size, max_pixels=max_pixels)):
            paths.append(folder / f"{number:04d}.npy")
            np.save(paths[-1], rgb_to_l_ab(rgb)[0].numpy())  # (1, 1, H, W)
        return paths, {"photos": len(paths)}

    settings = {"size": size, "max_pixels": max_pixels, "photos": [photo.sha256 for photo in photos]}
    run.do("peer-calibration", action, settings=settings)
    return folder


def _make_peer(run: Run, photos: PhotoSplit, peer: Peer, parent: MadePeer, graph: Path, calibration: Path) -> MadePeer:
    own_place = run.folder / ".peers" / "-".join(map(name_of, peer.requirements))
    environment = find_environment(own_place, peer.requirements, peer.distributions)
    made = replace(parent, peer=peer, versions=environment.versions, seconds=None)
    if not peer.recipe:
        return made if peer.name == BEST else replace(made, path=run.best_path)
    folder = run.folder / peer.name
    trained = peer.recipe == _TRAINING_RECIPE

    def action() -> tuple[list[Path], Mapping[str, Any]]:
        say(f"{peer.name}: {peer.tool} {next(iter(environment.versions.values()), '')}")
        if trained:
            return [folder / "model.pt"], _train_peer(run, photos, peer, folder)
        return run_recipe(peer, graph, calibration, folder, environment), {}

    stage = run.do(
        f"peer-{peer.name}",
        action,
        inputs=[run.best_path if trained else graph],
        settings={
            # Run by its path, so that no import leads to it.
            "recipe": hash_code(*(f"benchmarks.peers.{name}" for name in ("peer_worker", peer.recipe))),
            "options": dict(peer.options),
            "versions": dict(environment.versions),
            "calibration": sorted(path.name for path in calibration.glob("*.npy")),
            **vars(run.settings.score),
            **(run.arch_key() if trained else {}),
            **run.data_key(replace(photos, test=()) if trained else PhotoSplit(photos.train)),
        },
    )
    seconds = stage.result.get("seconds", stage.seconds) + (parent.seconds or 0.0)
    made = replace(made, path=folder / peer.files[0], seconds=round(seconds, 1))
    if not trained:
        return made
    export(run, folder / "model.pt", peer.name)
    return replace(made, **_count(run, folder / "model.pt"))


def _train_peer(run: Run, photos: PhotoSplit, peer: Peer, folder: Path) -> dict[str, Any]:
    try:
        return make_pruned(run, photos, folder, peer.options)
    except ColorpressError:
        raise
    except Exception as error:  # a tool of any kind fails in any way
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        raise MachineError("peer", peer.name, why, "run again with --debug") from error


def run_recipe(peer: Peer, graph: Path, calibration: Path, folder: Path, environment: Environment) -> list[Path]:
    """Run a recipe in its own process and environment, and move what it made to `folder`; see `peer_worker`.

    Raises:
        MachineError: the recipe failed; what it printed is in `<folder>/recipe.log`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "recipe.log"
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as name:
        work = Path(name).resolve()
        made = work / "made"
        made.mkdir()
        write_json(work / "job.json", {
            "recipe": str(_HERE / f"{peer.recipe}.py"),
            "graph": str(graph.resolve()),
            "calibration": str(calibration.resolve()),
            "folder": str(made),
            "options": dict(peer.options),
        })  # fmt: skip
        command = [str(environment.python), "-P", str(_HERE / "peer_worker.py")]
        ended, said = run_logged(command, log, cwd=work)
        try:
            error = json.loads((work / "answer.json").read_bytes())["error"]
        except (OSError, ValueError):
            error = f"{ended} without an answer: {(said or [''])[-1][:300]}"
        missing = [each for each in peer.files if not (made / each).is_file()]
        if error or missing:
            raise MachineError("peer", peer.name, error or f"it wrote no {missing[0]}", f"see {log}")
        return [write_bytes(folder / each, (made / each).read_bytes()) for each in peer.files]
