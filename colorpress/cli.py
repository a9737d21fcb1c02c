"""The command line: options to configs, one call into a stage, results to standard output, exit codes.

Nothing heavy is imported before a command runs, so `colorpress --help` is quick.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.shell_completion import shell_complete

from colorpress import __version__
from colorpress.browser import find_report, show_report
from colorpress.command_options import (
    DEFAULT_FOLDER,
    PATH,
    checkpoint_option,
    common_options,
    config_options,
    debug_option,
    json_option,
    make_settings,
    open_option,
    output_option,
    quiet_option,
)
from colorpress.core.config import CONFIGS, OPTION_NAMES, ArchConfig, DataConfig, Settings, WorkerConfig
from colorpress.core.console import settle_streams
from colorpress.core.cores import let_waiting_threads_sleep
from colorpress.core.errors import (
    ColorpressError,
    ConfigError,
    GateError,
    InputError,
    Interrupted,
    find_fault,
    printable,
)
from colorpress.core.signals import GO_ON, obey_as_any_process, obey_by_raising
from colorpress.next_steps import describe_start
from compress.precisions import PRECISIONS

if TYPE_CHECKING:
    from colorpress.core.stages import StageRecord
    from export.colorize_folder import Outcome
    from export.picture_contract import AskedNetwork
    from training.run_folder import Run

_THE_CHECKPOINT = "A trained model; default: best.pt of the run folder."
_THE_EXPORT = "An exported .onnx; default: those of the run folder."
# Where the shell says what it asks for to complete a line; the name is click's.
_COMPLETE = "_COLORPRESS_COMPLETE"
_PACKED = {each.name: each.describe for each in PRECISIONS.values() if each.made_by == "pack"}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code that `colorpress.core.errors` gives each outcome.

    Where a shell asks for completions, answer those instead.
    """
    if instruction := os.environ.get(_COMPLETE):
        sys.exit(shell_complete(cli, {}, "colorpress", _COMPLETE, instruction))
    let_waiting_threads_sleep()
    sys.exit(run_command(sys.argv[1:] if arguments is None else list(arguments)))


def run_command(arguments: Sequence[str], command: click.Command | None = None, name: str = "colorpress") -> int:
    """Run one command and return its exit code; errors are two lines on standard error.

    Args:
        command: another one than colorpress itself. `name`: what it is called.
    """
    settle_streams()
    debug = "--debug" in arguments
    try:
        obey_by_raising()
        try:
            return _invoke(command or cli, name, arguments)
        finally:
            obey_as_any_process()
    except ColorpressError as error:
        known = find_fault(error) or error
        return _fail(f"{known}", known.hint, known.exit_code, debug)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else name
        return _fail(error.format_message(), f"see `{path} --help`", 2, debug)
    except Interrupted as stopped:
        return _fail(f"{stopped}", GO_ON, stopped.exit_code, debug)
    except BrokenPipeError:
        # The reader of our output has gone, as in `colorpress doctor | head`: nothing is wrong.
        return 0
    except Exception as error:
        if fault := find_fault(error):
            return _fail(f"{fault}", fault.hint, fault.exit_code, debug)
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return _fail(f"internal: {type(error).__name__} at {place}: {error}", "run again with --debug", 1, debug)


def _invoke(command: click.Command, name: str, arguments: Sequence[str]) -> int:
    try:
        # Not cli.main: it would turn our signals into its own Abort.
        with command.make_context(name, list(arguments)) as context:
            context.command.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    return 0


def _fail(message: str, hint: str, exit_code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    lines = f"error: {printable(message)}\nhint: {printable(hint)}"
    encoding = sys.stderr.encoding or "ascii"
    print(lines.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)
    return exit_code


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "COLORPRESS"},
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="colorpress")
@click.pass_context
def cli(context: click.Context) -> None:
    """Turn a trained UNet colorizer into a small, fast ONNX model, and measure what that cost.

    `colorpress run` does everything; most other commands are its stages, on the same folder and with the same options.
    """
    if context.invoked_subcommand is None:
        click.echo("\n".join(describe_start()))
        return
    from colorpress.core.processes import require_one_process

    if context.invoked_subcommand not in ("train", "prune", "compress", "worker"):
        require_one_process(context.invoked_subcommand)


def stage_command(
    *configs: str, checkpoint: str = "", aliased: Sequence[str] = (), without: Sequence[str] = ()
) -> Callable[[Callable[..., Iterable[StageRecord]]], click.Command]:
    """Make a function the command of one or several stages: from the run to their records.

    The command holds the folder's lock, writes the effective options to it, and prints what the stages wrote.

    Args:
        configs: names in `Settings` of those whose options the command has. `aliased`, `without`: as `config_options`.
        checkpoint: what --checkpoint says; empty where there is none.
    """

    def decorate(function: Callable[..., Iterable[StageRecord]]) -> click.Command:
        @functools.wraps(function)
        def command(output_dir: Path, force: bool, as_json: bool, **given: Any) -> None:
            current = _open_run(output_dir, force, given)
            from colorpress.core.processes import is_main_process

            with _one_writer(output_dir):
                records = tuple(function(current, **_without_options(given)))
                if is_main_process():
                    current.write_settings()
                    _print_records(current, as_json, records)

        return _as_stage(command, *configs, checkpoint=checkpoint, aliased=aliased, without=without)

    return decorate


def _as_stage(
    function: Callable[..., None],
    *configs: str,
    checkpoint: str = "",
    aliased: Sequence[str] = (),
    without: Sequence[str] = (),
) -> click.Command:
    """A command with what all stages have: run folder, common options, perhaps --checkpoint, and those of `configs`."""
    function = config_options(*configs, aliased=aliased, without=without)(function)
    function = checkpoint_option(checkpoint)(function) if checkpoint else function
    return cli.command()(output_option(is_stage=True)(common_options(function)))


def _open_run(output_dir: Path, force: bool, given: dict[str, Any]) -> Run:
    settings = make_settings(output_dir, {name: value for name, value in given.items() if name in OPTION_NAMES})
    _require_runtimes(settings)
    from training.run_folder import Run

    return Run(output_dir, settings, force)


def _require_runtimes(settings: Settings) -> None:
    """Refuse a runtime that is not known before the hours that a mistyped name would cost."""
    if names := settings.benchmark.bench_runtime:
        from export.runtimes import check_names

        check_names(names)


def _complete_runtimes(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    from export.runtimes import RUNTIMES

    return [name for name in RUNTIMES if name.startswith(begun)]


def _without_options(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in OPTION_NAMES}


@cli.command()
@output_option(is_stage=False)
@common_options
@checkpoint_option("Start from this model; default: train one.")
@config_options(*CONFIGS, common_first=True)
@open_option
def run(
    output_dir: Path, force: bool, as_json: bool, checkpoint: Path | None, open_report: bool, **options: Any
) -> None:
    """Do everything, from photographs to a report.

    Train, rank, prune, distil a student, search, export, quantize, benchmark, report. Interrupted, the same command
    goes on where it stopped.
    """
    settings = Settings.from_options(options)
    _require_runtimes(settings)
    if settings.arch.arch and checkpoint is None:
        why = f"got {settings.arch.arch!r} without --checkpoint; colorpress trains its own UNet only"
        raise ConfigError("option", "--arch", why, "give the trained --checkpoint of that network")
    from colorpress.core.locks import locked_folder
    from colorpress.pipeline import run_pipeline
    from training.run_folder import Run

    with locked_folder(output_dir):
        current = Run(output_dir, settings, force)
        finished = run_pipeline(current, checkpoint=checkpoint, argv=["colorpress", *sys.argv[1:]])
    if as_json:
        _print_json(finished.stages)
    else:
        from colorpress.outcome import describe_outcome

        has_trained = any(stage.name == "train" for stage in finished.stages)
        click.echo("\n".join(describe_outcome(current, argv=sys.argv[1:], has_trained=has_trained)))
    if open_report:
        _show(finished.report_path)
    finished.raise_faults()


@stage_command("data", "unet", "train", "fit", "machine")
def train(current: Run) -> Iterable[StageRecord]:
    """Train the original UNet: photographs to best.pt."""
    from training.curve_prose import explain
    from training.original import train
    from training.run_folder import find_photos

    return [train(current, find_photos(current)), *explain(current)]


@click.argument("original", metavar="BEST.PT", type=PATH)
def adopt(output_dir: Path, force: bool, as_json: bool, original: Path, **options: Any) -> None:
    """Take a trained network of another project as best.pt.

    BEST.PT are its weights, and --arch names its code. What it reads and answers, where that is not given, is tried on
    photographs: the table says how near to the truth each way of asking comes, and what is taken.
    """
    current = _open_run(output_dir, force, options)
    from training.original import adopt_checkpoint, read_named
    from training.run_folder import find_photos

    with _one_writer(output_dir):
        read_named(current, original)
        adopted = adopt_checkpoint(current, original, find_photos(current), anew=True)
        current.write_settings()
    assert adopted is not None
    if as_json:
        click.echo(json.dumps({"best": str(current.best_path), **adopted.to_dict()}, indent=2))
    else:
        click.echo("\n".join(map(printable, (*adopted.to_lines(), f"it is {current.best_path} now"))))


_as_stage(adopt, "arch", "data", "machine")


@stage_command("arch", "rank", "count", "data", "machine", checkpoint=_THE_CHECKPOINT)
def rank(current: Run, checkpoint: Path | None) -> Iterable[StageRecord]:
    """Rank layers by parameters, work, time and sensitivity.

    Sensitivity is the colour that is lost when a layer is changed.
    """
    from compress.ranking_stages import rank, rank_views
    from training.original import read_named, settle_conventions
    from training.run_folder import find_photos

    path = checkpoint or current.best_path
    read_named(current, path)
    photos = find_photos(current) if current.settings.rank.rank_photos else None
    current = settle_conventions(current, path, photos)
    yield rank(current, path)
    yield rank_views(current, path, photos)


@stage_command(
    "arch", "data", "prune", "budget", "count", "time", "score", "distil",
    "machine", checkpoint=_THE_CHECKPOINT,
)  # fmt: skip
def prune(current: Run, checkpoint: Path | None) -> Iterable[StageRecord]:
    """Prune layers, then fine-tune by distillation.

    Writes pruned/plan.json, which can be edited and given back, and pruned/model.pt.
    """
    from compress.prune_stage import prune
    from training.original import read_named, settle_conventions
    from training.run_folder import find_photos

    path = checkpoint or current.best_path
    read_named(current, path)
    photos = find_photos(current)
    return [prune(settle_conventions(current, path, photos), path, photos)]


@stage_command(
    "arch", "data", "goal", "budget", "count", "time", "score", "student", "further", "distil",
    "export", "quantize", "qat", "machine", checkpoint=_THE_CHECKPOINT, aliased=("budget",),
)  # fmt: skip
@click.option(
    "--name", default="auto", show_default=True, help="Of the student's folder; several can stand side by side."
)
def student(current: Run, checkpoint: Path | None, name: str) -> Iterable[StageRecord]:
    """Distil one small network from best.pt, trained for long.

    The smallest of several widths that keeps best.pt's colour, or the network of --student-plan.
    """
    from compress.students.student_stages import distil_student
    from training.original import adopt_checkpoint, read_named
    from training.run_folder import find_photos

    read_named(current, checkpoint or current.best_path)
    photos = find_photos(current)
    adopt_checkpoint(current, checkpoint, photos)
    return distil_student(current, photos, name)


_study_help = "Shared storage: a journal file in a shared folder, or a URL such as postgresql+psycopg://user@host/name"


@click.argument("original", metavar="[BEST.PT]", required=False, type=PATH)
@click.option("--study", default=None, help=f"{_study_help}; default: in the run folder.")
@click.option("--dry-run", is_flag=True, help="Show space, budgets and the estimated time; train nothing.")
def compress(
    output_dir: Path,
    force: bool,
    as_json: bool,
    checkpoint: Path | None,
    original: Path | None,
    study: str | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Search for small networks within a budget: a Pareto front.

    Students of best.pt, and best.pt pruned, by file size, latency and colour, and the one to take of them.
    BEST.PT is the trained model, as with --checkpoint; default: best.pt of the run folder.
    """
    if original is not None and checkpoint is not None:
        raise ConfigError("option", "--checkpoint", "does not go with BEST.PT", "give one of the two")
    current = _open_run(output_dir, force, options)
    from compress.students.search_estimate import describe_plan
    from compress.students.search_stages import lead_or_assist, result_lines, search, summarize
    from training.original import adopt_checkpoint, read_named
    from training.run_folder import find_photos

    def lead() -> None:
        if dry_run:
            lines, answer = describe_plan(current, photos, study=study)
        else:
            found = search(current, photos, study=study)
            current.write_settings()
            lines, answer = result_lines(found), summarize(found)
        click.echo(json.dumps(answer, indent=2) if as_json else "\n".join(map(printable, lines)))

    with _one_writer(output_dir):
        read_named(current, original or checkpoint or current.best_path)
        photos = find_photos(current)
        adopt_checkpoint(current, original or checkpoint, photos)
        lead_or_assist(current, photos, study, lead)


_as_stage(
    compress, "arch", "data", "goal", "budget", "count", "time", "score", "search",
    "worker", "further", "distil", "export", "quantize", "machine", checkpoint=_THE_CHECKPOINT,
    aliased=("budget",),
)  # fmt: skip


@cli.command()
@output_option(is_stage=False)
@common_options
@checkpoint_option(_THE_CHECKPOINT)
@click.option("--study", required=True, help=f"{_study_help}; that of the search to join.")
@click.option("--data", type=PATH, default=None, help="Folder of the same photographs as the search's.")
@click.option("--unlabelled", type=PATH, default=None, help="Folder of the same further photographs, if it has some.")
@config_options("arch", "machine")
def worker(output_dir: Path, force: bool, as_json: bool, checkpoint: Path | None, study: str, **options: Any) -> None:
    """Join a search on this or another machine.

    All other options are those of the search.
    """
    from compress.students.search_stages import lead_or_assist, read_worker_options, work
    from training.original import adopt_checkpoint, read_named
    from training.run_folder import Run, find_photos

    shared = read_worker_options(study, WorkerConfig().worker_timeout)
    current = Run(output_dir, Settings.from_options({**shared, **options}), force)

    def lead() -> None:
        done = work(current, photos, study=study)
        click.echo(json.dumps({"trials": done}) if as_json else f"{done} trials done here")

    with _one_writer(output_dir):
        read_named(current, checkpoint or current.best_path)
        photos = find_photos(current)
        adopt_checkpoint(current, checkpoint, photos)
        lead_or_assist(current, photos, study, lead)


@stage_command("arch", "data", "export", "mobile", checkpoint=_THE_CHECKPOINT, aliased=("mobile",))
def export(current: Run, checkpoint: Path | None) -> Iterable[StageRecord]:
    """Export to ONNX, checked against PyTorch, and for phones.

    best.pt and every network made from it, or the one --checkpoint. With --to also to LiteRT (.tflite) and ExecuTorch
    (.pte), each in float and in int8.
    """
    from compress.export_stages import calibrates, export, export_for_phones
    from compress.students.student_plan import list_students
    from training.run_folder import find_photos

    made = [current.folder / name / "model.pt" for name in ("pruned", *list_students(current.folder))]
    given = [checkpoint] if checkpoint else _present(current.folder, [current.best_path, *made])
    photos = find_photos(current).train if calibrates(current) else ()
    for path in given:
        yield export(current, path, _variant_name(path))
        yield from export_for_phones(current, path, _variant_name(path), photos)


# Training of int8 has a learning rate of its own.
@stage_command(
    "arch", "data", "goal", "quantize", "qat", "count", "score", "distil",
    "machine", checkpoint=_THE_EXPORT,
    without=("distil_learning_rate", "teacher_weight", "distil_crop_share", "distil_tone_jitter"),
)  # fmt: skip
def quantize(current: Run, checkpoint: Path | None) -> Iterable[StageRecord]:
    """Quantize exported models to static int8.

    Calibrated on training photographs, judged on validation ones, and trained where int8 loses too much.
    """
    from compress.int8.int8_stage import quantize, quantize_each
    from compress.precisions import variant_name
    from training.run_folder import find_photos

    photos = find_photos(current)
    if checkpoint is not None:
        return [quantize(current, checkpoint, variant_name(_variant_name(checkpoint), "int8"), photos)]
    return quantize_each(current, _present(current.folder, _exported(current)), photos)


@stage_command("data", checkpoint=_THE_EXPORT)
@click.option("--pack-precision", type=click.Choice(list(_PACKED)), default="w8", show_default=True,
              help=f"{', or '.join(_PACKED.values())}.")  # fmt: skip
def pack(current: Run, checkpoint: Path | None, pack_precision: str) -> Iterable[StageRecord]:
    """Store weights in 4, 8 or 16 bits; what is computed stays float.

    4 bits look at 16 training photographs; the others at none.
    """
    from compress.export_stages import pack
    from compress.precisions import variant_name
    from training.run_folder import find_photos

    given = [checkpoint] if checkpoint else _present(current.folder, _exported(current))
    photos = find_photos(current).train if PRECISIONS[pack_precision].calibrates else ()
    names = [variant_name(_variant_name(path), pack_precision) for path in given]
    return [pack(current, path, name, pack_precision, photos) for path, name in zip(given, names, strict=True)]


@stage_command(
    "arch", "data", "benchmark", "time", "score", "machine", checkpoint=_THE_CHECKPOINT,
    aliased=("benchmark", "time"),
)  # fmt: skip
@click.argument("models", type=PATH, nargs=-1)
@open_option
def benchmark(
    current: Run, checkpoint: Path | None, models: tuple[Path, ...], open_report: bool
) -> Iterable[StageRecord]:
    """Measure size, latency, memory and colour of every variant.

    Of best.pt and what the run folder holds of it, or of MODELS, any .pt, .onnx and OpenVINO .xml files, the first of
    which the others are compared with. Beside them stand controls: answers that never look at the picture.
    """
    if models and checkpoint is not None:
        raise ConfigError("option", "--checkpoint", "does not go with MODELS", "name it first among them")
    from benchmarks.also import find_also
    from benchmarks.suite import benchmark, require_measured
    from benchmarks.variants import describe_models, list_variants
    from training.original import adopt_checkpoint, read_named
    from training.run_folder import find_photos

    read_named(current, checkpoint)
    given = describe_models(models, size=current.settings.time.bench_size[0], arch=current.settings.arch)
    photos = find_photos(current) if current.settings.benchmark.eval_photos else None
    adopt_checkpoint(current, checkpoint, photos)
    variants = given or list_variants(current)
    measured = benchmark(current, variants, photos, find_also(current, photos) if photos else ())
    require_measured(current, measured)
    yield measured
    if open_report:
        from benchmarks.report.page import report

        yield report(current)
        _show(find_report(current.folder))


@stage_command()
def report(current: Run) -> Iterable[StageRecord]:
    """Write report.html from what the run folder holds."""
    from benchmarks.report.page import report

    return [report(current)]


@cli.command("open")
@click.argument("folder", type=PATH, default=DEFAULT_FOLDER)
@debug_option
def open_folder(folder: Path) -> None:
    """Open the report of a run folder in the browser.

    FOLDER is the run folder; default: reports. Without a display its path is printed alone.
    """
    path = find_report(folder)
    click.echo(printable(str(path)))
    _show(path)


@cli.command()
@click.argument("before", metavar="A", type=PATH)
@click.argument("after", metavar="B", type=PATH)
@click.option("--fail-if", multiple=True, metavar="METRIC:LIMIT",
              help="End with 5 where a row's metric became worse by more than LIMIT: p50:5%, c:0.01, size:1KB. "
              "Repeat it for more.")  # fmt: skip
@click.option("--variant", "variants", multiple=True, help="A row to look at; repeat it for more. Default: all.")
@quiet_option
@debug_option
def compare(before: Path, after: Path, fail_if: tuple[str, ...], variants: tuple[str, ...]) -> None:
    """Compare two benchmarks, and fail where one is worse.

    A before and B after, benchmark.json files or run folders. Every metric of every row goes to standard output as
    JSON, a table to standard error.
    """
    from benchmarks.comparison import compare_benchmarks, format_comparison, parse_gate
    from colorpress.core.console import say, warn

    gates = [parse_gate(text) for text in fail_if]
    found = compare_benchmarks(before, after, gates, variants=variants)
    click.echo(json.dumps(found, indent=2, allow_nan=False))
    for line in format_comparison(found, gates).splitlines():
        say(line)
    for warning in found["warnings"]:
        warn(warning)
    if failures := found["failures"]:
        more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
        why = f"{failures[0]['model']}: {failures[0]['why']}{more}"
        raise GateError("comparison", after, why, "see `failures` on standard output, or allow more with --fail-if")


@stage_command("arch", "data", "deploy")
def deploy(current: Run) -> Iterable[StageRecord]:
    """Write colorizer.onnx: pixels in, pixels out, in any runtime.

    Beside every model.onnx of the run folder, with what was measured of it.
    """
    from colorpress.deploy_stages import deploy, exported_variants
    from training.run_folder import find_photos

    photos = find_photos(current).test
    return [deploy(current, name, photos) for name in exported_variants(current)]


@stage_command("arch", "data", "export")
def verify(current: Run) -> Iterable[StageRecord]:
    """Compare ONNX files with PyTorch, and try every runtime.

    Over 208 sizes, to parity.csv and parity.json. Runtimes that are here run each file; of the others the file tells
    what speaks against them.
    """
    from colorpress.deploy_stages import exported_variants, verify
    from training.run_folder import find_photos

    return [verify(current, exported_variants(current), find_photos(current).test)]


@click.option("--variant", default=None, help="Which one to ship, such as auto-w8; default: the recommended one.")
@click.option("--to", "destination", type=PATH, default=None, help="Where to; default: bundle in the run folder.")
@click.option("--web/--no-web", default=True, show_default=True, help="With a page that colours in the browser.")
def bundle(
    output_dir: Path,
    force: bool,
    as_json: bool,
    variant: str | None,
    destination: Path | None,
    web: bool,
    **options: Any,
) -> None:
    """Write a folder ready to ship, with card and web page.

    The model, an example, its card, checksums, and a page that colours in the browser.
    """
    current = _open_run(output_dir, force, options)
    from dataclasses import asdict

    from colorpress import deploy_stages
    from colorpress.core.locks import locked_folder
    from training.run_folder import find_photos

    with locked_folder(output_dir):
        target, photos = destination or output_dir / "bundle", find_photos(current)
        made = deploy_stages.bundle(current, variant, target, photos, web=web)
    if as_json:
        click.echo(json.dumps({"path": str(made.folder), **asdict(made)}, indent=2, default=str))
    else:
        click.echo("\n".join(printable(str(made.folder / name)) for name in made.files))
        click.echo(f"{made.size_bytes:,} bytes in {printable(str(made.folder))}")


_as_stage(bundle, "data", "deploy")


@cli.command()
@click.argument("model", type=PATH)
@click.option("--runtime", metavar="NAME", multiple=True,
              help="Also run it once in this one, such as onnxruntime-webgpu, and count the kernel calls that are "
                   "left to the CPU; repeatable.")  # fmt: skip
@json_option
@debug_option
def inspect(model: Path, runtime: tuple[str, ...], as_json: bool) -> None:
    """Say what is in an .onnx file.

    Its contract, metadata, layers, sizes, operators and precisions.
    """
    from export.onnx_probe import format_inspection, inspect_onnx
    from export.placement import count_kernel_calls

    found = inspect_onnx(model)
    counts = {name: count_kernel_calls(model, name) for name in runtime}
    if as_json:
        counted = {"kernel_calls": {name: each.as_dict() for name, each in counts.items()}} if counts else {}
        click.echo(json.dumps({**found, **counted}, indent=2))
    else:
        click.echo(format_inspection(model, found))
        click.echo("".join(f"\n{name}: {each.describe()}" for name, each in counts.items()), nl=bool(counts))


@cli.command()
@click.argument("history", required=False, type=PATH)
@click.option("--output-dir", "-o", type=PATH, default=None,
              help="Where training_inference.md goes; default: beside HISTORY, or the run folder reports.")  # fmt: skip
@json_option
@debug_option
def explain(history: Path | None, output_dir: Path | None, as_json: bool) -> None:
    """Explain a training curve in words.

    HISTORY is any CSV of epochs and losses; default: history.csv of a run folder (-o).
    """
    from dataclasses import asdict

    from training.curve import read_curve
    from training.curve_prose import write_explanation
    from training.history import EXPLANATION_NAME, read_history

    source = history or (output_dir or DEFAULT_FOLDER) / "history.csv"
    reading = read_curve(read_history(source))
    path = write_explanation((output_dir or source.parent) / EXPLANATION_NAME, reading, source)
    click.echo(json.dumps({"path": str(path), **asdict(reading)}, indent=2) if as_json else printable(str(path)))


@cli.command()
@click.argument("photos", nargs=-1, required=True, type=PATH)
@click.option("--output-dir", "-o", type=PATH, default=Path("colorized"), show_default=True, help="Where they go.")
@click.option(
    "--model",
    "-m",
    type=PATH,
    default=None,
    help="Any model colorpress wrote, .pt or .onnx, or a checkpoint with --arch; default: one that comes along.",
)
@config_options("arch")
@click.option("--work-size", type=click.IntRange(16, 8192), default=None,
              help="Short side that the network sees, in pixels.  [default: the model's, 256]")  # fmt: skip
@click.option("--saturation", type=click.FloatRange(0.0, 4.0), default=None,
              help="What the model's chroma is multiplied by.  [default: the model's, 1]")  # fmt: skip
@click.option("--tag/--no-tag", default=True, show_default=True,
              help="Say in each file's XMP that software coloured it.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Colour photographs again that are already in the output folder.")
@click.option(
    "--max-pixels", type=int, default=DataConfig().max_pixels, show_default=True, help="Refuse larger photographs."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--runtime", default=None, shell_complete=_complete_runtimes,
              help="What runs the model; `colorpress doctor` lists all.  [default: as its file is]")  # fmt: skip
@click.option("--workers", type=click.IntRange(0, 1024), default=0, show_default=True,
              help="Photographs at a time; 0: one per core.")  # fmt: skip
@click.option("--threads", type=click.IntRange(0, 1024), default=0, show_default=True,
              help="Threads of each worker; 0: the cores shared out among them.")  # fmt: skip
@json_option
@quiet_option
@debug_option
def colorize(
    photos: tuple[Path, ...],
    output_dir: Path,
    model: Path | None,
    work_size: int | None,
    saturation: float | None,
    tag: bool,
    overwrite: bool,
    max_pixels: int,
    device: str,
    runtime: str | None,
    workers: int,
    threads: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Colour photographs, or folders of them, with a model."""
    arch = ArchConfig(**options)
    from contextlib import closing

    from colorpress.core.console import say
    from colorpress.core.cores import usable_cores
    from export.colorize_folder import DEMONSTRATION_MODEL, Coloring, colorize_each
    from export.runtimes import open_colorizer

    if model is None:
        say("colouring with the small model that comes along, for demonstration: --model takes yours")
    else:
        from export.onnx_probe import refuse_hostile

        refuse_hostile(model, runtime=runtime or "")
    alone = len(photos) == 1 and not photos[0].is_dir()
    workers = 1 if alone else workers or usable_cores()
    # Several photographs at a time on one thread each are faster than one after another on all.
    threads = threads or max(1, usable_cores() // workers)
    colorizer = open_colorizer(
        model or DEMONSTRATION_MODEL,
        work_size=work_size,
        saturation=saturation,
        arch=arch,
        device=device,
        threads=threads,
        runtime=runtime or "",
    )

    def open_network() -> AskedNetwork:
        from export.large_pictures import open_network_of
        from export.runtimes import Opening

        opening = Opening(device, threads * workers, arch, work_size=work_size, saturation=saturation)
        return open_network_of(model or DEMONSTRATION_MODEL, opening, runtime=runtime or "")

    coloring = Coloring(
        colorizer,
        workers,
        max_pixels,
        overwrite,
        is_tagged=tag,
        open_network=open_network,
        threads=threads * workers,
    )
    with closing(colorize_each(photos, output_dir, coloring)) as outcomes:
        _tell_outcomes(outcomes, output_dir, as_json)


def _tell_outcomes(outcomes: Iterable[Outcome], output_dir: Path, as_json: bool) -> None:
    """Say what becomes of photographs; what is held of each is a path, and that as JSON alone.

    Raises:
        GateError: too many could not be read.
    """
    colored = kept = bad = 0
    listed: dict[str, list[Any]] = {"colorized": [], "kept": [], "skipped": []}
    for each in outcomes:
        colored += each.output is not None and not each.is_kept
        kept += each.is_kept
        bad += each.output is None and each.is_photo
        if as_json:
            kind = "skipped" if each.output is None else "kept" if each.is_kept else "colorized"
            skipped = {"path": str(each.source), "reason": each.reason}
            listed[kind].append(str(each.output) if each.output else skipped)
        elif each.output is None and each.is_photo:
            click.echo(f"skipped {printable(str(each.source))}: {printable(each.reason)}", err=True)
    if as_json:
        click.echo(json.dumps(listed, indent=2))
    else:
        noun = "photograph" if colored == 1 else "photographs"
        click.echo(f"{colored} {noun} in {printable(str(output_dir))}")
    total = colored + kept + bad
    if bad > DataConfig().max_bad_share * total:
        why = f"{bad} of {total} could not be read; the others are coloured"
        raise GateError("photographs", None, why, "see the reasons above")


@cli.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine has, and what is missing.

    Versions, processor, runtimes.
    """
    from colorpress.doctor import describe_environment, format_environment

    found = describe_environment()
    click.echo(json.dumps(found, indent=2) if as_json else format_environment(found))


@contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Of the processes that torchrun started the main one alone locks the folder and speaks."""
    from colorpress.core.console import set_quiet
    from colorpress.core.locks import locked_folder
    from colorpress.core.processes import is_main_process, joined_processes

    with joined_processes():
        if not is_main_process():
            set_quiet(True)
        with locked_folder(folder) if is_main_process() else nullcontext():
            yield


def _print_records(current: Run, as_json: bool, records: Sequence[StageRecord]) -> None:
    if as_json:
        _print_json(records)
        return
    for record in records:
        if record.name == "benchmark":
            from colorpress.outcome import describe_benchmark

            click.echo("\n".join(describe_benchmark(current, has_report=len(records) > 1)))
        else:
            click.echo("\n".join(printable(str(current.folder / path)) for path in record.outputs))
        if record.name == "verify":
            from export.provider_matrix import format_matrix

            click.echo("\n".join(printable(line) for line in format_matrix(record.result["providers"])))


def _print_json(records: Sequence[StageRecord]) -> None:
    click.echo(json.dumps({record.name: {"skipped": record.skipped, "seconds": record.seconds,
                                         "files": list(record.outputs), **record.result}
                           for record in records}, indent=2))  # fmt: skip


def _show(report_path: Path) -> None:
    from colorpress.core.console import say

    if not show_report(report_path):
        say(f"no display here, so nothing was opened: look at {report_path} where there is one")


def _exported(current: Run) -> list[Path]:
    """Where the float32 ONNX files of a run folder are, if they are."""
    from compress.students.student_plan import list_students

    return [current.folder / name / "model.onnx" for name in ("best", "pruned", *list_students(current.folder))]


def _present(folder: Path, paths: Sequence[Path]) -> list[Path]:
    found = [path for path in paths if path.exists()]
    if not found:
        maker = "export" if paths[0].suffix == ".onnx" else "train"
        hint = f"make it with `colorpress {maker} -o {folder}`, give --checkpoint, or name another run folder with -o"
        raise InputError("folder", folder, f"holds no {paths[0].name}", hint)
    return found


def _variant_name(path: Path) -> str:
    """The folder of a variant: `pruned` for pruned/model.pt, the file's own stem for other names."""
    return path.resolve().parent.name if path.stem == "model" else path.stem
