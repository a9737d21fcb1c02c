"""Configs as command-line options: names, ranges, help and defaults come from the fields, values from flags and TOML.

Nothing heavy is imported here, so that help is quick.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import click

from colorpress.core.config import (
    ARCH_OPTIONS,
    CONFIGS,
    OPTION_NAMES,
    PATH_OPTIONS,
    RESOLVED_OPTIONS,
    Config,
    Settings,
    field_type,
    is_comma_list,
    is_list,
    option_name,
    parse_quantity,
)
from colorpress.core.errors import ConfigError, InputError
from colorpress.core.reading import read_toml

Function = TypeVar("Function", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
DEFAULT_FOLDER = Path("reports")
# Lists that are given by repeating their option.
_REPEATED = tuple(
    each.name
    for config in CONFIGS.values()
    for each in fields(config)
    if is_list(each) and not is_comma_list(config, each)
)


class _CommaList(click.ParamType[tuple[Any, ...]]):
    """Values with commas between them, such as 1,8; the config checks each."""

    name = "list"

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        items = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        try:
            return tuple(self.kind(item.strip() if isinstance(item, str) else item) for item in items)
        except ValueError:
            self.fail(f"{value!r} is no list of whole numbers, such as 1,8", param, ctx)


class _Quantity(click.ParamType[float]):
    """A number that may carry a unit, such as 2ms; the config checks its range."""

    name = "float"

    def __init__(self, units: Mapping[str, float]) -> None:
        self.units = units

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, str):
            return parse_quantity(value, param.opts[0] if param else "option", self.units)
        return float(value)


def config_options(
    *configs: str, aliased: Sequence[str] = (), without: Sequence[str] = (), common_first: bool = False
) -> Callable[[Function], Function]:
    """One command-line option per field.

    A name belongs to the first config that claims it, by a field or by its alias.

    Args:
        configs: by their names in `Settings`.
        aliased: of them, those whose second names the command offers.
        without: fields that the command does not use.
        common_first: the help shows common options only, and all of them with --help-all.
    """
    options: list[Callable[[Any], Any]] = []
    taken: set[str] = set()
    for group in configs:
        for each in fields(config := CONFIGS[group]):
            if (name := option_name(each.name)) in taken or each.name in without:
                continue
            names = [name, *([each.metadata["alias"]] if each.metadata["alias"] and group in aliased else [])]
            taken |= set(names)
            options.append(_make_option(config, each, names, hidden=common_first and not each.metadata["common"]))
    if common_first:
        options.append(click.option(
            "--help-all", is_flag=True, is_eager=True, expose_value=False, callback=_show_all, help="Show all options.",
        ))  # fmt: skip
    return _combined(*options)


def _make_option(config: type[Config], each: Field[Any], names: Sequence[str], *, hidden: bool) -> Callable[[Any], Any]:
    kind: Any = field_type(config, each)
    commas, is_flag = is_comma_list(config, each), kind is bool
    if choices := each.metadata["choices"]:
        kind = click.Choice(choices)
    elif units := each.metadata["units"]:
        kind = _Quantity(units)
    elif kind is Path:
        kind = PATH
    default: Any = each.default
    shown: Any = default not in (None, ())
    if commas and shown:
        shown = ",".join(map(str, default))
    return click.option(
        *(f"--{name}/--no-{name}" if is_flag else f"--{name}" for name in names),
        each.name,
        type=_CommaList(field_type(config, each)) if commas else kind,
        default=default,
        multiple=is_list(each) and not commas,
        show_default=shown,
        hidden=hidden,
        help=each.metadata["help"],
    )


def _combined(*decorators: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """The decorators as one, applied as if they stood above each other in this order."""

    def decorate(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def output_option(*, is_stage: bool) -> Callable[[Function], Function]:
    """The run folder; on the command of a stage the options that it was made with are the defaults."""
    note = "; the options it was made with are the defaults of the others" if is_stage else ""
    return click.option(
        "--output-dir",
        "-o",
        type=PATH,
        default=DEFAULT_FOLDER,
        show_default=True,
        is_eager=True,
        callback=_use_folder_options if is_stage else None,
        help=f"The run folder{note}.",
    )


def checkpoint_option(text: str) -> Callable[[Function], Function]:
    """--checkpoint, with what it says."""
    return click.option("--checkpoint", "-c", type=PATH, default=None, help=text)


open_option = click.option("--open", "open_report", is_flag=True, help="Open the report in the browser at the end.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")


def _be_quiet(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    from colorpress.core.console import set_quiet

    set_quiet(value)


def _read_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Make the values of a TOML file the defaults of this command: flags and the environment win over them."""
    if path is not None and not context.resilient_parsing:
        context.default_map = {**(context.default_map or {}), **load_options(path)}


def _use_folder_options(context: click.Context, parameter: click.Parameter, folder: Path) -> Path:
    resolved = folder / RESOLVED_OPTIONS
    if resolved.is_file() and not context.resilient_parsing:
        context.default_map = {**load_options(resolved), **(context.default_map or {})}
    return folder


def _show_all(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        hidden = [each for each in context.command.params if isinstance(each, click.Option) and each.hidden]
        for each in hidden:
            each.hidden = False
        text = context.get_help()
        for each in hidden:
            each.hidden = True
        click.echo(text)
        context.exit()


quiet_option = click.option("--quiet", "-q", is_flag=True, expose_value=False, callback=_be_quiet, help="No progress.")

# What every stage has beside its run folder.
common_options = _combined(
    click.option("--force", is_flag=True, help="Redo all, and replace what is in the way."),
    click.option(
        "--config", type=PATH, is_eager=True, expose_value=False, callback=_read_config, help="Options as TOML."
    ),
    json_option,
    quiet_option,
    debug_option,
)


def load_options(path: Path) -> dict[str, Any]:
    """The options of a TOML file by field name, each checked as the configs check theirs.

    What another version of colorpress wrote into a run folder is left out where this one has no such option, and said.

    Raises:
        ConfigError: no such file, not TOML, an unknown option, or a value outside its range.
    """
    try:
        values = read_toml(path, "configuration", "give a TOML file of lines such as `epochs = 15`")
    except InputError as error:
        raise ConfigError(error.what, error.subject, error.why, error.hint) from None
    options = {name.replace("-", "_"): value for name, value in values.items()}
    # One will do for a list of one; of a text click would take each letter.
    options |= {name: [options[name]] for name in _REPEATED if isinstance(options.get(name), str)}
    if path.name == RESOLVED_OPTIONS:
        # Part of a run folder, which may be somebody else's: it names no code to run.
        _warn_of_unknown(path, tuple(name for name in options if name not in OPTION_NAMES))
        options = {name: value for name, value in options.items() if name in OPTION_NAMES and name not in ARCH_OPTIONS}
    try:
        Settings.from_options(_with_paths(options))
    except ConfigError as error:
        raise ConfigError(error.what, error.subject, error.why, f"{error.hint}; it stands in {path}") from None
    return options


@cache
def _warn_of_unknown(path: Path, names: tuple[str, ...]) -> None:
    """Once for each file, which is read for the defaults of a command and for those of the other stages."""
    if names:
        from colorpress.core.console import warn

        known = "is no option" if len(names) == 1 else "are no options"
        warn(f"{path} is of another version: {', '.join(map(option_name, names))} {known} any more, and left out")


def make_settings(folder: Path, options: Mapping[str, Any]) -> Settings:
    """The options of one stage, and those of the others as the run folder was made with.

    Raises:
        ConfigError: as `load_options`.
    """
    resolved = folder / RESOLVED_OPTIONS
    others = _with_paths(load_options(resolved)) if resolved.is_file() else {}
    return Settings.from_options({**others, **options})


def _with_paths(options: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has texts where configs have paths, alone or in a list."""

    def with_paths(value: Any) -> Any:
        if isinstance(value, list):
            return [with_paths(item) for item in value]
        return Path(value) if isinstance(value, str) else value

    return {**options, **{name: with_paths(options[name]) for name in PATH_OPTIONS if name in options}}
