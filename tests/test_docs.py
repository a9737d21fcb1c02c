"""Every command of the README and of docs/ is one that exists, and, where this machine can, one that works."""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import click
import pytest
import torch

from colorpress.cli import cli, run_command
from colorpress.core.config import OPTION_NAMES, Settings
from colorpress.core.source_code import ROOT
from tests.conftest import make_photo

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
RECORDS = tuple(sorted((ROOT / "reports").rglob("README.md")))
LINKED = (*PAGES, *sorted((ROOT / "reports").rglob("*.md")))
README_LINES = 150
# Blocks that `<!-- not run: why -->` keeps from being run, by page: what needs something that tests do not have.
NOT_RUN = {
    "docs/deployment.md": 1,  # the npm registry
    "docs/gpu.md": 6,  # GPUs, and a wheel for WebGPU
    "docs/peers.md": 1,  # an environment for each tool
    "docs/runtimes.md": 1,  # the libraries for phones
    "docs/several-machines.md": 2,
    "docs/torchrun.md": 2,
}
_NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->")
_BEGINS_FINISHED = "<!-- begins with a finished run in out/ -->"
_LANGUAGES = {"sh", "console", "python"}
TINY = {
    "base": "8", "depth": "2", "epochs": "2", "batch_size": "8", "epoch_crops": "16", "imgsz": "16", "val_size": "24",
    "finetune_crops": "16", "round_to": "2", "test_share": "0.2", "workers": "0",
    "threads": "1", "calibration_photos": "2", "importance_photos": "2", "eval_size": "24", "calibration_size": "24",
    "qat_crops": "8", "bench_size": "32", "roof": "false", "rounds": "1", "runs": "3", "min_seconds": "0",
    "warmup": "1", "student_crops": "32", "student_trial_crops": "16", "distil_imgsz": "32",
    "distil_batch_size": "8", "rank_size": "32", "rank_photos": "1", "rank_runs": "2", "search_trials": "2",
    "search_crops": "8", "search_full_crops": "16", "search_front": "2", "search_int8": "false",
}  # fmt: skip
NETWORK = """\
import torch
from torch import nn


class UNet(nn.Module):
    def __init__(self, base=4):
        super().__init__()
        self.down = nn.Conv2d(1, base, 3, 2, 1)
        self.norm = nn.BatchNorm2d(base)
        self.up = nn.ConvTranspose2d(base, base, 2, 2)
        self.out = nn.Conv2d(base, 2, 3, 1, 1)

    def forward(self, x):
        return torch.tanh(self.out(self.up(torch.relu(self.norm(self.down(x))))))
"""


@dataclass(frozen=True)
class Block:
    """The commands of one fenced block, and why they are not run (empty: they are)."""

    page: Path
    line: int
    commands: tuple[str, ...]
    not_run: str


@dataclass(frozen=True)
class Command:
    """One command line: what is set in front of it, and its words."""

    environment: Mapping[str, str]
    words: tuple[str, ...]


def find_blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of commands of a page.

    Raises:
        ValueError: a fence says no language, so that commands in it would be overlooked.
    """
    before, fence, lines = "", "", list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("```"):
            lines.append(line)
            before = line if line.strip() and not fence else before
        elif not fence:
            fence, lines = line.removeprefix("```").strip() or "nothing", []
            if fence not in _LANGUAGES:
                raise ValueError(f"{page.name}:{number}: a block of {fence!r}; one of {', '.join(_LANGUAGES)}")
        else:
            if fence in ("sh", "console"):
                why = _NOT_RUN.fullmatch(before)
                yield Block(page, number - len(lines), read_lines("\n".join(lines)), why[1] if why else "")
            fence, before = "", ""


def read_lines(text: str) -> tuple[str, ...]:
    """The command lines of a block: what is continued joined, one variable per line filled in, `&&` taken apart."""
    found: list[str] = []
    variables: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if variable := re.fullmatch(r"([A-Z]+)=\"(.*)\"", line):
            variables[f"${variable[1]}"] = variable[2]
            continue
        for name, value in variables.items():
            line = line.replace(name, value)
        found += [part.removeprefix("$ ") for part in line.split(" && ") if part.strip()]
    return tuple(found)


def find_spans(page: Path) -> tuple[str, ...]:
    """What stands in `backticks` in the text of a page, each on one line."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return tuple(" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text))


def read_command(line: str) -> Command:
    """Split a command line as a shell does, comments left out."""
    words = shlex.split(line, comments=True)
    count = next((index for index, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words))
    return Command(dict(word.split("=", 1) for word in words[:count]), tuple(words[count:]))


def check_command(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse what is no command of this project, or has options or values that it does not take."""
    match command.words:
        case ("colorpress", *words):
            check_colorpress(words, command.environment, monkeypatch)
        case ("python", "-m", "torch.distributed.run", *words):
            check_colorpress(words[words.index("colorpress") + 1 :], command.environment, monkeypatch)
        case ("python", "-m", module, *words):
            check_module(module, words)
        case ("make", target):
            targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert target in targets, f"make {target}: no such target"
        case ("pip", "install", *_) | (".", ".venv/bin/activate"):
            pass
        case words:
            raise AssertionError(f"{shlex.join(words)}: what is it?")


def check_colorpress(words: Sequence[str], environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse a command line of colorpress as it is parsed before its work begins, and check its values."""
    assert words and words[0] in cli.commands, f"colorpress {shlex.join(words)}: no such command"
    command = cli.commands[words[0]]
    for name, value in environment.items():
        known = {f"COLORPRESS_{words[0]}_{parameter.name}".upper() for parameter in command.params}
        assert name in known, f"{name}: no option of colorpress {words[0]}"
        monkeypatch.setenv(name, value)
    parent = click.Context(cli, info_name="colorpress", auto_envvar_prefix="COLORPRESS")
    try:
        with command.make_context(words[0], list(words[1:]), parent=parent) as context:
            given = {
                name: value for name, value in context.params.items() if name in OPTION_NAMES and value is not None
            }
            Settings.from_options(given)
    except click.exceptions.Exit as done:  # --help
        assert done.exit_code == 0


def check_module(name: str, words: Sequence[str]) -> None:
    """Refuse a module that is not there, or options that its command does not have."""
    module = load_module(name)
    if (command := click_command(module)) is not None:
        command.make_context(name, list(words)).close()
    else:
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= argparse_options(module), f"python -m {name}: {options - argparse_options(module)}"


def load_module(name: str) -> ModuleType:
    """What `python -m name` runs."""
    found = importlib.util.find_spec(name)
    assert found is not None, f"python -m {name}: no such module"
    return importlib.import_module(f"{name}.__main__" if found.submodule_search_locations else name)


def click_command(module: ModuleType) -> click.Command | None:
    """The command that a module defines; None where it reads its arguments otherwise."""
    commands = [each for each in vars(module).values() if isinstance(each, click.Command)]
    return next((each for each in commands if getattr(each.callback, "__module__", "") == module.__name__), None)


def argparse_options(module: ModuleType) -> set[str]:
    """The options that the help of a module's `main` shows."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(said), pytest.raises(SystemExit):
        monkeypatch.setattr(sys, "argv", [module.__name__, "--help"])
        module.main()
    return set(re.findall(r"--[a-z0-9-]+", said.getvalue()))


@cache
def all_options() -> set[str]:
    """Every option of every command that a page may speak of."""
    modules = [load_module(f"benchmarks.{name}") for name in (
        "peers", "studies.choice_coverage", "studies.distillation_levers", "studies.loading", "studies.picture_speed",
        "studies.search_worth", "studies.training_levers",
    )]  # fmt: skip
    commands = [*cli.commands.values(), *filter(None, map(click_command, modules))]
    found = {
        name for each in commands for parameter in each.params for name in parameter.opts + parameter.secondary_opts
    }
    others = (module for module in modules if click_command(module) is None)
    return found.union({"--help"}, *map(argparse_options, others))


def slug_of(heading: str) -> str:
    """The anchor that a heading gets: lower case, words joined by hyphens, no punctuation."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands are parsed in: the option files that they name are there."""
    (tmp_path / "out").mkdir()
    for path in (tmp_path / "mine.toml", tmp_path / "out" / "config.resolved.toml"):
        path.write_text("epochs = 2\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


BLOCKS = [block for page in (*PAGES, *RECORDS) for block in find_blocks(page)]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page.relative_to(ROOT)}:{block.line}")
def test_the_commands_of_each_block_exist(block: Block, ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in block.commands:
        check_command(read_command(line), monkeypatch)


@pytest.mark.parametrize("page", (*PAGES, *RECORDS), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_in_a_page_s_text_exist(page: Path, ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = all_options()
    for span in find_spans(page):
        if re.match(r"(colorpress|make) \w+$", span):
            command, name = span.split()
            assert command == "make" or name in cli.commands, span
        elif re.match(r"(colorpress |python -m benchmarks|make )", span):
            if not span.startswith("python") or "--" in span:
                check_command(read_command(span), monkeypatch)
            else:
                load_module(span.split()[2])
        for option in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", span):
            assert option in known, f"{page.name}: there is no option {option}"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("colorpress trian --data photos/", "no such command"),
        ("colorpress train --epoch-count 5", "No such option"),
        ("colorpress train --upsample magic", "is not one of"),
        ("colorpress train --epochs 0", "got 0"),
        ("colorpress colorize", "Missing parameter: photos"),
        ("COLORPRESS_TRAIN_EPOCH=5 colorpress train", "no option of"),
        ("python -m torch.distributed.run --nproc-per-node 2 -m colorpress train --no-such", "No such option"),
        ("python -m benchmarks.nothing", "no such module"),
        ("python -m benchmarks.peers best.pt --no-such", "No such option"),
        ("python -m benchmarks.studies.picture_speed out/colorizer.onnx --no-such", "--no-such"),
        ("make coffee", "no such target"),
        ("rm -rf out", "what is it"),
    ],
)
def test_a_command_that_does_not_exist_is_found(
    line: str, why: str, ground: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Exception, match=re.escape(why)):
        check_command(read_command(line), monkeypatch)


def test_blocks_are_found_with_their_reasons(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n<!-- not run: needs a GPU -->\n```sh\nmake gpu \\\n  now\n\n# why\n```\n\n```python\nmake()\n```\n"
        'text\n```console\nO="-o out"\n$ make demo && make $O\n```\n'
    )
    first, second = find_blocks(page)
    assert (first.commands, first.not_run, first.line) == (("make gpu    now", "# why"), "needs a GPU", 4)
    assert (second.commands, second.not_run) == (("make demo", "make -o out"), "")
    page.write_text("```\ncolorpress train\n```\n")
    with pytest.raises(ValueError, match="nothing"):
        list(find_blocks(page))


def test_what_is_not_run_is_listed() -> None:
    marked = [str(block.page.relative_to(ROOT)) for block in BLOCKS if block.not_run]
    assert {page: marked.count(page) for page in marked} == NOT_RUN


def test_the_readme_is_short_and_names_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    for page in PAGES[1:]:
        assert f"](docs/{page.name}" in text, f"README.md does not name docs/{page.name}"


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_the_pages_link_to_is_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug_of, headings), f"{page.name} links to {link}"


def test_the_functions_that_a_page_names_are_there() -> None:
    named = {span for page in PAGES for span in find_spans(page) if re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+)+", span)}
    packages = tuple(f"{package}." for package in ("colorpress", "training", "compress", "export", "benchmarks"))
    functions = {name for name in named if name.startswith(packages)}
    assert len(functions) > 10
    for name in functions:
        module, _, attribute = name.rpartition(".")
        parent = importlib.import_module(module)
        # A module of a package is an attribute of it only where another test has imported it.
        found = hasattr(parent, "__path__") and importlib.util.find_spec(name)
        assert found or hasattr(parent, attribute), f"{name} is not there"


def test_the_files_that_a_page_names_are_there() -> None:
    for page in PAGES:
        for span in find_spans(page):
            if re.fullmatch(r"(colorpress|training|compress|export|benchmarks|tests)/[\w/.]*", span):
                assert (ROOT / span).exists(), f"{page.name}: {span} is not there"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that pages take for granted, in small: photographs, best.pt, a network of one's own, a finished run."""
    folder = tmp_path_factory.mktemp("ground")
    for place, seeds in (("photos", range(10)), ("folder", range(2)), ("elsewhere", range(30, 33))):
        (folder / place).mkdir()
        for index in seeds:
            make_photo(index).save(folder / place / f"{index}.png")
    make_photo(20).convert("L").save(folder / "old.jpg")
    (folder / "mine.toml").write_text('epochs = 3\ndata = "photos"\n')
    (folder / "nets").mkdir()
    (folder / "nets" / "unet.py").write_text(NETWORK)
    scope: dict[str, type[torch.nn.Module]] = {}
    exec(NETWORK, scope)
    torch.save(scope["UNet"](base=32).state_dict(), folder / "theirs.pt")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        be_tiny(monkeypatch)
        assert run_command(["run", "--data", "photos", "-o", "out"]) == 0
    shutil.copy(folder / "out" / "best.pt", folder)
    shutil.copy(folder / "out" / "history.csv", folder)
    for name in ("old", "new"):
        (folder / name).mkdir()
        shutil.copy(folder / "out" / "benchmark.json", folder / name)
    return folder


def be_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every command's defaults small, by the environment; options of a command line still win."""
    for name, command in cli.commands.items():
        for parameter in command.params:
            if parameter.name in TINY:
                monkeypatch.setenv(f"COLORPRESS_{name}_{parameter.name}".upper(), TINY[parameter.name])


def lines_to_run(page: Path) -> list[str]:
    """The command lines of colorpress itself that a page asks for, in order; studies have tests of their own."""
    lines = [line for block in find_blocks(page) if not block.not_run for line in block.commands]
    return [line for line in lines if read_command(line).words[:1] == ("colorpress",)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page in PAGES if lines_to_run(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_work_one_after_the_other(
    page: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "here"
    shutil.copytree(finished, place)
    if _BEGINS_FINISHED not in page.read_text(encoding="utf-8"):
        shutil.rmtree(place / "out")
    monkeypatch.chdir(place)
    be_tiny(monkeypatch)
    for line in lines_to_run(page):
        command = read_command(line)
        with monkeypatch.context() as within:
            for name, value in command.environment.items():
                within.setenv(name, value)
            assert run_command(command.words[1:]) == 0, f"{line}\n{capsys.readouterr().err[-3000:]}"
        capsys.readouterr()
