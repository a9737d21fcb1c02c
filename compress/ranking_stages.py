"""The stages that rank layers: by size, and by all that is known: work, time, and what they mean for the colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from colorpress.core.console import say
from colorpress.core.errors import InputError
from colorpress.core.locks import scratch_folder
from colorpress.core.machine import machine_key
from colorpress.core.stages import StageRecord, make_key
from compress.int8.int8_choice import has_vnni
from compress.measures import FIDELITY, Measure, Score
from compress.ranking import convolution_channels, rank_layers, write_ranking
from compress.ranking_views import describe_views, join_views, write_views
from compress.sensitivity import Sensitivity, measure_sensitivities
from compress.yardstick import make_yardstick, score_onnx
from export.graph import at_exportable_sizes, build_graph
from export.layer_latency import LayerTimes, time_onnx_layers, time_torch_layers, warn_when_busy
from training.checkpoint import Checkpoint
from training.network import ColorNetwork
from training.photo_split import PhotoSplit
from training.photos import Photo
from training.run_folder import Run, warn_of_other_split


def rank(run: Run, checkpoint: Path) -> StageRecord:
    """Rank the layers by parameters: model_summary.txt, layer_param_counts.csv, top20_layers.png."""
    size = run.settings.count.rank_size

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        return write_ranking(run.load(checkpoint).build_network(), run.folder, height=size, width=size)

    return run.do("rank", action, inputs=[checkpoint], settings={"size": size, **run.arch_key()})


def rank_views(run: Run, checkpoint: Path, photos: PhotoSplit | None) -> StageRecord:
    """Rank the convolutions by size, work, time and sensitivity: layer_ranking.csv and layer_ranking.png.

    Args:
        photos: sensitivities are measured on the first of `choosing`; None where `rank_photos` is 0.
    """
    settings = run.settings
    chosen = () if photos is None else photos.choosing[: settings.rank.rank_photos]
    sensitivity_settings = {
        "size": settings.count.rank_size,
        "opset": settings.export.opset,
        "vnni": has_vnni(),
        **run.arch_key(),
        # A lightness table is fitted on those to train on.
        **run.data_key(PhotoSplit(train=photos.train if photos and chosen else (), choosing=chosen)),
    }

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        found = run.load(checkpoint)
        network = found.build_network()
        size, machine = settings.count.rank_size, settings.machine
        convolutions = convolution_channels(network)
        timing = {"side": size, "runs": settings.rank.rank_runs, "threads": machine.threads}
        model = _export(run, network)
        with warn_when_busy():
            in_torch = time_torch_layers(network, convolutions, **timing)
            in_ort = time_onnx_layers(model, convolutions, **timing) if model else LayerTimes({}, 0.0)
        measure, sensitivities = FIDELITY, dict[str, Sensitivity]()
        if model and photos is not None and chosen:
            warn_of_other_split(found, photos)
            content = make_key(_measure, inputs=[checkpoint], settings=sensitivity_settings)
            measure, sensitivities = _measure(run, found, model, convolutions, photos, chosen, content)
        views = join_views(
            rank_layers(network, height=size, width=size),
            convolutions,
            ort_ms=in_ort.by_layer,
            torch_ms=in_torch.by_layer,
            sensitivities=sensitivities,
        )
        title = f"Convolutions of {network.title} at {size} x {size} pixels, in the order they are computed"
        finding = describe_views(views, measure)
        say(finding)
        return write_views(views, list(in_torch.by_layer), run.folder, title=title, measure=measure), {
            "finding": finding,
            "convolutions": len(views),
            "ort_ms": round(in_ort.call_ms, 4),
            "torch_ms": round(in_torch.call_ms, 4),
            "sensitivity_photos": len(chosen) if sensitivities else 0,
            "measure": measure.name if sensitivities else None,
        }

    used = {
        **sensitivity_settings,
        **vars(settings.count),
        **vars(settings.rank),
        "threads": settings.machine.threads,
        "machine": machine_key(),
    }
    return run.do("rank-views", action, inputs=[checkpoint], settings=used)


def _export(run: Run, network: ColorNetwork) -> onnx.ModelProto | None:
    """The float graph; None, said in a line, for a network that cannot be exported."""
    try:
        return at_exportable_sizes(network, lambda sized: build_graph(sized, opset=run.settings.export.opset))
    except InputError as error:
        say(f"no time in ONNX Runtime and no sensitivities: {error}")
        return None


def _measure(
    run: Run,
    best: Checkpoint,
    model: onnx.ModelProto,
    convolutions: Mapping[str, int],
    photos: PhotoSplit,
    chosen: Sequence[Photo],
    key: str,
) -> tuple[Measure, dict[str, Sensitivity]]:
    settings = run.settings
    yardstick = make_yardstick(run, best, photos, chosen, short_side=settings.count.rank_size)
    strength = yardstick.strength
    if math.isnan(yardstick.reference.best.kept):
        say(f"no sensitivities: nothing of best.pt's colours can be measured. {strength.describe()}")
        return strength.measure, {}
    measure = strength.measure
    say(f"sensitivities, by {measure}: {' '.join(strength.sentences())}")
    cache_path = run.folder / ".sensitivity.json"
    if run.force:
        cache_path.unlink(missing_ok=True)
    with scratch_folder() as folder:
        trial = folder / "model.onnx"

        def score(content: bytes) -> Score:
            trial.write_bytes(content)
            return score_onnx(yardstick, trial, threads=settings.machine.threads)

        return measure, measure_sensitivities(
            model,
            convolutions,
            [picture.lightness.numpy() for picture in yardstick.pictures],
            score,
            cache_path,
            key=key,
            threads=settings.machine.threads,
        )
