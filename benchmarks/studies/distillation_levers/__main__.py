"""What each part of distillation is worth, measured by changing it.

    python -m benchmarks.studies.distillation_levers best.pt plan.json --data photos -o levers

One student, the same crops, each lever in turn left out or put in, with several seeds: what it is taught, its shape at
the same multiply-accumulates, how long it learns, the bits of its weights, the recipe, and where it starts. Scores are
on the validation photographs that did not choose the epochs, where there are any.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from benchmarks.studies.distillation_levers.lever_job import LeverJob, describe_question, format_levers
from benchmarks.studies.distillation_levers.levers import GROUPS, list_levers, pick_levers
from benchmarks.studies.lever_rows import learn_rows
from colorpress.cli import run_command
from colorpress.command_options import PATH, config_options, debug_option, quiet_option
from colorpress.core.config import Settings
from colorpress.core.locks import locked_folder
from compress.students.student_plan import read_student_network
from training.original import adopt_checkpoint
from training.run_folder import Run, find_photos

_NAME = "python -m benchmarks.studies.distillation_levers"
_CROPS_HELP = "Of each training, in epochs of 8,000."


@click.command(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "COLORPRESS"})
@click.argument("checkpoint", type=PATH)
@click.argument("plan", type=PATH)
@click.option("--output-dir", "-o", type=PATH, default=Path("levers"), show_default=True, help="Where all of it goes.")
@click.option("--crops", type=click.IntRange(min=1), default=16_000, show_default=True, help=_CROPS_HELP)
@click.option("--seeds", type=click.IntRange(min=1), default=2, show_default=True, help="How many trainings of each.")
@click.option("--lever", "names", multiple=True, help="Only this one; repeatable.  [default: all]")
@click.option("--group", "groups", multiple=True, type=click.Choice(GROUPS), help="Only these and the controls.")
@click.option("--pruned", type=click.FloatRange(0.01, 0.99), help="Also best.pt without this share of its channels.")
@quiet_option
@debug_option
@config_options("arch", "data", "further", "distil", "score", "machine")
def compare_levers(
    checkpoint: Path,
    plan: Path,
    output_dir: Path,
    crops: int,
    seeds: int,
    names: tuple[str, ...],
    groups: tuple[str, ...],
    pruned: float | None,
    **options: Any,
) -> None:
    """Train the student of PLAN from CHECKPOINT with one lever changed at a time: levers.json, and a table.

    What levers.json has already is not trained again.
    """
    run = Run(output_dir, Settings.from_options(options))
    network = read_student_network(plan)
    with locked_folder(output_dir):
        photos = find_photos(run)
        adopt_checkpoint(run, checkpoint, photos)
        job = LeverJob(run, photos, network, crops)
        teacher, settings = job.best.build_network(), run.settings
        levers = list_levers(network, teacher, settings.distil, side=settings.count.rank_size, pruned=pruned)
        rows = learn_rows(
            output_dir / "levers.json",
            describe_question(job),
            pick_levers(levers, names, groups),
            seeds,
            lambda name, seed: [job.learn(levers, name, seed)],
        )
    click.echo(format_levers(rows))


if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:], compare_levers, _NAME))
