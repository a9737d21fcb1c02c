"""python -m benchmarks.peers best.pt OURS... --data photos -o out: other tools' ways beside ours, in one benchmark."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from colorpress.cli import run_command
from colorpress.command_options import PATH, config_options, debug_option, quiet_option
from colorpress.core.config import Settings
from colorpress.core.errors import ConfigError

if TYPE_CHECKING:
    from benchmarks.peers.making import MadePeer
    from benchmarks.variants import Variant
    from training.run_folder import Run

_NAME = "python -m benchmarks.peers"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "COLORPRESS"})
@click.argument("checkpoint", type=PATH)
@click.argument("ours", type=PATH, nargs=-1)
@click.option("--output-dir", "-o", type=PATH, default=Path("peers"), show_default=True, help="Where all of it goes.")
@click.option("--peer", "names", multiple=True, help="Only this one; repeatable.  [default: all]")
@click.option("--openvino", is_flag=True, help="Measure OURS in OpenVINO as well.")
@click.option("--measure/--no-measure", default=True, show_default=True, help="Make the peers, and measure them.")
@click.option("--force", is_flag=True, help="Make again what is up to date.")
@quiet_option
@debug_option
@config_options("arch", "data", "benchmark", "time", "score", "machine", "export", aliased=("benchmark", "time"))
def compare_peers(
    checkpoint: Path,
    ours: tuple[Path, ...],
    output_dir: Path,
    names: tuple[str, ...],
    openvino: bool,
    measure: bool,
    force: bool,
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
    from benchmarks.also import find_also
    from benchmarks.peers.making import make_peers
    from benchmarks.peers.peer_table import format_peers, write_peers_json
    from benchmarks.report.page import write_report
    from benchmarks.rows import Row
    from benchmarks.suite import run_benchmark
    from benchmarks.variants import describe_models
    from colorpress.core.files import write_text
    from colorpress.core.locks import locked_folder
    from training.original import adopt_checkpoint
    from training.run_folder import Run, find_photos, warn_of_other_split

    run = Run(output_dir, settings, force)
    own = describe_models(ours, size=settings.time.bench_size[0], arch=settings.arch)
    for variant in own:
        if variant.name in {"best.pt", *(peer.name for peer in PEERS)}:
            raise ConfigError("model", variant.path, f"is called {variant.name!r} as a peer is", "rename its folder")
    with locked_folder(output_dir):
        photos = find_photos(run)
        adopt_checkpoint(run, checkpoint, photos)
        also = find_also(run, photos)
        warn_of_other_split(run.load(run.best_path), photos)
        made = make_peers(run, photos, peers)
        write_peers_json(output_dir / "peers.json", made, output_dir)
        rows: list[Row] = []
        if measure:
            rows, _ = run_benchmark(run, _list_variants(run, own, made, openvino), photos, also)
        table = format_peers(made, rows)
        write_text(output_dir / "peers.md", table)
        run.write_settings()
        if measure:
            write_report(output_dir, command=shlex.join([*_NAME.split(), *sys.argv[1:]]))
    click.echo(table)


def _list_variants(run: Run, own: Sequence[Variant], made: Sequence[MadePeer], openvino: bool) -> list[Variant]:
    """What is measured: best.pt, ours, ours in OpenVINO where that is asked for, and every peer in its runtimes."""
    from benchmarks.variants import describe_models

    (best,) = describe_models([run.best_path], size=run.settings.time.bench_size[0], arch=run.settings.arch)
    again = [variant for variant in own if openvino and variant.runtime == "onnxruntime"]
    in_openvino = [replace(each, name=f"{each.name} @ openvino", runtime="openvino") for each in again]
    return [best, *own, *in_openvino, *(row for each in made for row in each.describe(run))]


if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:], compare_peers, _NAME))
