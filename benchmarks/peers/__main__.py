"""python -m benchmarks.peers best.pt OURS... --data photos -o out: other tools' ways beside ours, in one benchmark."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from colorpress.cli import config_options, run_command
from colorpress.core.config import (
    ArchConfig,
    BenchmarkConfig,
    DataConfig,
    ExportConfig,
    MachineConfig,
    ScoreConfig,
    Settings,
    TimeConfig,
)
from colorpress.core.errors import ConfigError

_NAME = "python -m benchmarks.peers"
_PATH = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "COLORPRESS"})
@click.argument("checkpoint", type=_PATH)
@click.argument("ours", type=_PATH, nargs=-1)
@click.option("--output-dir", "-o", type=_PATH, default=Path("peers"), show_default=True, help="Where all of it goes.")
@click.option("--peer", "names", multiple=True, help="Only this one; repeatable.  [default: all]")
@click.option("--openvino", is_flag=True, help="Measure OURS in OpenVINO as well.")
@click.option("--measure/--no-measure", default=True, show_default=True, help="Make the peers, and measure them.")
@click.option("--force", is_flag=True, help="Make again what is up to date.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
@config_options(
    ArchConfig,
    DataConfig,
    BenchmarkConfig,
    TimeConfig,
    ScoreConfig,
    MachineConfig,
    ExportConfig,
    aliased=(BenchmarkConfig, TimeConfig),
)
def compare_peers(
    checkpoint: Path,
    ours: tuple[Path, ...],
    output_dir: Path,
    names: tuple[str, ...],
    openvino: bool,
    measure: bool,
    force: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Make what other tools recommend of CHECKPOINT, and measure it beside OURS: peers.md, peers.json, benchmark.json.

    Peers are made from the same float32 graph that colorpress exports and from the training photographs of the same
    split; what was made already is kept. One that cannot be installed, made or run is a row that says so.
    """
    from benchmarks.peers.peer_list import PEERS, choose_peers

    peers, settings = choose_peers(names), Settings.from_options(options)
    if settings.benchmark.bench_runtime:
        why = "does not go with peers, which say what runs them"
        raise ConfigError("option", "--bench-runtime", why, "leave it out, or give --openvino")
    from benchmarks.peers.making import make_peers
    from benchmarks.peers.peer_table import format_peers, write_peers_json, write_peers_table
    from benchmarks.report.page import write_report
    from benchmarks.suite import run_benchmark
    from benchmarks.tables import Row
    from benchmarks.variants import describe_models, describe_variant
    from colorpress.core.console import set_quiet
    from colorpress.core.files import locked_folder
    from training.adoption import adopt_checkpoint
    from training.run_folder import Run, find_photos, warn_of_other_split

    set_quiet(quiet)
    run = Run(output_dir, settings, force)
    size = settings.time.bench_size[0]
    own = describe_models(ours, size=size, arch=settings.arch)
    for variant in own:
        if variant.name in {"best.pt", *(peer.name for peer in PEERS)}:
            raise ConfigError("model", variant.path, f"is called {variant.name!r} as a peer is", "rename its folder")
    with locked_folder(output_dir):
        adopt_checkpoint(run, checkpoint)
        photos = find_photos(run)
        best = run.load(run.best_path)
        warn_of_other_split(best, photos)
        made = make_peers(run, photos, peers)
        write_peers_json(output_dir / "peers.json", made, output_dir)
        rows: tuple[Row, ...] = ()
        if measure:
            from compress.ranking import count_macs

            macs = count_macs(best.build_network(), height=size, width=size)
            first = describe_variant("best.pt", run.best_path, macs=macs, macs_size=size, arch=settings.arch)
            in_openvino = [
                replace(variant, name=f"{variant.name} @ openvino", runtime="openvino")
                for variant in own
                if openvino and variant.runtime == "onnxruntime"
            ]
            variants = [first, *own, *in_openvino, *(row for each in made for row in each.describe(run))]
            measured = run_benchmark(
                variants, photos.test, settings.benchmark_plan, output_dir, machine=settings.machine, data=settings.data
            )
            rows = measured.rows
        write_peers_table(output_dir / "peers.md", made, rows)
        run.write_settings()
        if measure:
            write_report(output_dir, command=shlex.join([*_NAME.split(), *sys.argv[1:]]))
    click.echo(format_peers(made, rows))


if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:], compare_peers, _NAME))
