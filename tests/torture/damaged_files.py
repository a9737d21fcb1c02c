"""Damaged checkpoints, hostile pickles, and journals, plans, records and options that somebody edited.

    python -m tests.torture.damaged_files --count 2000

The same seed gives the same files. Exit code 1 where anything but reading or refusing happened.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.torture.children import Task, run_child, torture
from tests.torture.figures import Figures
from tests.torture.hostile_pickles import hostile_pickles

Dice = np.random.Generator

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = ROOT / "reports" / "example"


def pick(dice: Dice, choices: Any) -> Any:
    """One of several values of any kinds."""
    return choices[int(dice.integers(len(choices)))]


def damage_bytes(content: bytes, dice: Dice) -> bytes:
    """Flipped bits, cut ends, pieces left out, repeated or overwritten."""
    data = bytearray(content)
    for _ in range(int(dice.integers(1, 4))):
        place = int(dice.integers(0, max(1, len(data))))
        match int(dice.integers(6)):
            case 0:
                data[place : place + 1] = bytes([int(dice.integers(256))])
            case 1:
                del data[place:]
            case 2:
                del data[place : place + int(dice.integers(1, 64))]
            case 3:
                data[place:place] = data[place : place + int(dice.integers(1, 64))]
            case 4:
                # Ends of archives and starts of pickles are where sizes and places stand.
                place = (
                    int(dice.integers(0, min(len(data), 300)))
                    if dice.random() < 0.5
                    else max(0, len(data) - place % 300)
                )
                data[place : place + 4] = pick(
                    dice, [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"PK\x05\x06"]
                )
            case _:
                data[place : place + 1] = pick(dice, [b"\0", b"\xff", b"{", b'"', b"[", b"\n", b"."])
    return bytes(data)


# Values that stand where others were: of other kinds, without end, too large, too deep.
def odd_values() -> list[Any]:
    deep: list[Any] = []
    for _ in range(400):
        deep = [deep]
    return [
        *(
            None,
            True,
            False,
            -1,
            0,
            0.5,
            2**31,
            2**63,
            10**400,
            -0.0,
            float("nan"),
            float("inf"),
            "",
            "x",
            "\0",
            "\ud800",
        ),
        *(
            "../../../etc/passwd",
            "/dev/zero",
            "nan",
            "1" * 5000,
            [],
            {},
            [[]],
            [None],
            {"": None},
            [1, 2],
            {"a": 1},
            deep,
        ),
    ]


def odd_tensors() -> list[Tensor]:
    numbers = torch.arange(6.0)
    return [
        *(numbers.to(kind) for kind in (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.int8)),
        *(numbers.to(kind) for kind in (torch.int64, torch.uint16, torch.bool, torch.complex64, torch.complex32)),
        *(torch.tensor(1.0), torch.zeros(0), torch.zeros(3, 0, 2), numbers.to_sparse(), numbers.to("meta")),
        *(
            torch.full((3,), float("nan")),
            numbers[None].to_sparse_csr(),
            torch.quantize_per_tensor(numbers, 0.1, 0, torch.qint8),
        ),
        *(torch.zeros(1).expand(10**5, 10**4), torch._neg_view(numbers), numbers.as_strided((4, 3), (1, 1))),
    ]


def edit_value(value: Any, dice: Dice, odd: list[Any]) -> Any:
    """The value with one part, at any depth, taken out or replaced by an odd one."""
    value = copy.copy(value)
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or dice.random() < 0.15:
        return pick(dice, odd)
    key = pick(dice, keys)
    if dice.random() < 0.1:
        del value[key]
    elif dice.random() < 0.05 and isinstance(value, list):
        value.extend([value[key]] * 3)
    else:
        value[key] = edit_value(value[key], dice, odd)
    return value


def edit_tensor(tensor: Tensor, dice: Dice) -> Tensor:
    """The tensor in another dtype, layout or shape, with other strides or values."""
    kinds = [torch.float16, torch.float64, torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e5m2]
    changes: list[Callable[[], Tensor]] = [
        lambda: tensor.to(pick(dice, kinds)),
        lambda: tensor.to_sparse(),
        lambda: tensor.to("meta"),
        lambda: tensor.flatten()[:1].expand(tensor.shape or (3,)),
        lambda: tensor[..., None],
        lambda: tensor.float() * float("inf"),
        lambda: -tensor.float() - 1,
        lambda: tensor.flatten(),
        lambda: tensor.T if tensor.ndim <= 2 else tensor.transpose(0, 1),
    ]
    return pick(dice, changes)()


@cache
def own_content() -> dict[str, Any]:
    from training.checkpoint import Checkpoint, dump_checkpoint
    from training.unet import UNet, UNetPlan

    plan = UNetPlan.classic(4, 2)
    row = {"epoch": 1.0, "train_l1": 0.1, "val_l1": 0.1, "learning_rate": 0.001, "seconds": 1.0, "images_per_s": 9.0}
    state = {"trained": {"a": torch.zeros(2)}, "step": 1, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    saved = Checkpoint(plan, UNet(plan).state_dict(), 1, 0.1, (row,), {"stage": "train", "fit": {"seed": 1}}, state)
    content: dict[str, Any] = torch.load(io.BytesIO(dump_checkpoint(saved)), weights_only=True)
    return content


def make_checkpoint(dice: Dice) -> tuple[str, bytes]:
    """The suffix and the content of a damaged checkpoint: its bytes, its values or its tensors."""
    from safetensors.torch import save

    content = own_content()
    form = pick(dice, ["own", "own", "weights", "legacy", "safetensors"])
    way = pick(dice, ["bytes", "values", "tensor"])
    if way == "values" and form != "safetensors":
        content = edit_value(content, dice, [*odd_values(), *odd_tensors(), np.float64(0.3), np.arange(3), {1, 2}])
    elif way == "tensor":
        name = pick(dice, list(content["state_dict"]))
        odd = edit_tensor(content["state_dict"][name], dice)
        content = {**content, "state_dict": {**content["state_dict"], name: odd}}
    buffer = io.BytesIO()
    try:
        weights = content["state_dict"]
        if form == "safetensors":
            raw = save({name: tensor.contiguous() for name, tensor in weights.items()})
        else:
            kept = weights if form == "weights" else content
            torch.save(kept, buffer, _use_new_zipfile_serialization=form != "legacy")
            raw = buffer.getvalue()
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        # PyTorch itself cannot write it so.
        return make_checkpoint(dice)
    if way == "bytes" or form == "safetensors":
        raw = damage_bytes(raw, dice)
    return (".safetensors" if form == "safetensors" else ".pt"), raw


def read_checkpoint(path: Path) -> str:
    """What becomes of a file that is opened as each command opens a checkpoint."""
    from colorpress.core.errors import ColorpressError
    from training.checkpoint import dump_checkpoint, load_checkpoint

    try:
        found = load_checkpoint(path)
        network = found.build_network()
    except ColorpressError as error:
        assert "internal" not in f"{error}" and len(f"{error}") < 2000
        return "refused"
    assert network(torch.rand(1, 1, 9, 10)).shape == (1, 2, 9, 10)
    json.dumps(found.architecture.describe(), allow_nan=False)
    dump_checkpoint(found)
    return "read"


def damaged_checkpoint(seed: int, number: int, folder: Path) -> str:
    suffix, raw = make_checkpoint(np.random.default_rng((seed, number)))
    path = folder / f"checkpoint{suffix}"
    path.write_bytes(raw)
    return read_checkpoint(path)


def hostile_pickle(_: int, number: int, folder: Path) -> str:
    name, raw = list(hostile_pickles().items())[number]
    path = folder / "hostile.pt"
    path.write_bytes(raw)
    outcome = read_checkpoint(path)
    assert outcome == "refused", name
    return outcome


def damage_json(content: bytes, dice: Dice) -> bytes:
    """A JSON file with other bytes, other values, or something else altogether."""
    way = dice.random()
    if way < 0.3:
        return damage_bytes(content, dice)
    if way < 0.4:
        whole = [
            b"",
            b"null",
            b"[" * 5000,
            b'{"a":' * 5000,
            b"\0" * 50,
            b"\xff\xfe{",
            b"NaN",
            b"[1e999]",
            b'"x"',
            b"1" * 6000,
        ]
        return bytes(pick(dice, whole))
    edited = edit_value(json.loads(content), dice, odd_values())
    return json.dumps(edited).encode()


@cache
def journal() -> bytes:
    from compress.students.search_study import NumberedSampler, create_study, open_storage, work_through

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.log"
        study = create_study(open_storage(str(path), timeout_s=2, create=True), "s", NumberedSampler(1), {"a": 1})
        study.enqueue_trial({"x": 0.5})
        work_through(study, lambda trial: (trial.suggest_float("x", 0, 1), 1.0, 2.0), wanted=3)
        return path.read_bytes()


def damaged_journal(seed: int, number: int, folder: Path) -> str:
    """A journal with other bytes, or a record of other values, that a search goes on with."""
    from colorpress.core.errors import ColorpressError
    from compress.students.search_study import (
        NumberedSampler,
        check_trials,
        create_study,
        join_study,
        open_storage,
        retire_own_trials,
        work_through,
    )

    dice = np.random.default_rng((seed, number))
    lines = journal().splitlines(keepends=True)
    if dice.random() < 0.3:
        content = damage_bytes(journal(), dice)
    else:
        place = int(dice.integers(len(lines)))
        lines[place] = damage_json(lines[place], dice).replace(b"\n", b" ") + b"\n"
        content = b"".join(lines)
    path = folder / "journal.log"
    path.write_bytes(content)
    outcome = "read"
    try:
        storage = open_storage(str(path), timeout_s=2, create=True)
        create_study(storage, "s", NumberedSampler(1), {"a": 1})
        study = join_study(storage, "s", NumberedSampler(1))
        check_trials(study, lambda trial: [float(value) for value in trial.values])
        retire_own_trials(study, "w")
        work_through(study, lambda trial: (trial.suggest_float("x", 0, 1), 1.0, 2.0), wanted=5)
    except ColorpressError:
        outcome = "refused"
        # What is not proven ours, or is damaged in front of its end, stays; a torn last line alone is cut.
        left = path.read_bytes()
        assert content.startswith(left) and b"\n" not in content[len(left) :]
    shutil.rmtree(folder)
    folder.mkdir()
    return outcome


def damaged_plan(seed: int, number: int, folder: Path) -> str:
    from colorpress.core.errors import ColorpressError
    from compress.prune_plan import read_plan
    from compress.students.student_plan import is_student_plan, read_student_network
    from training.unet import empty_unet

    dice = np.random.default_rng((seed, number))
    source = EXAMPLE / pick(dice, ["pruned", "smallest"]) / "plan.json"
    path = folder / "plan.json"
    path.write_bytes(damage_json(source.read_bytes(), dice))
    is_student_plan(path)
    try:
        if source.parent.name == "pruned":
            read_plan(path)
        else:
            empty_unet(read_student_network(path))
    except ColorpressError:
        return "refused"
    return "read"


def damaged_record(seed: int, number: int, folder: Path) -> str:
    """The records of a run folder, which the report reads, and that of a stage."""
    from benchmarks.comparison import compare_benchmarks
    from benchmarks.report.page import write_report
    from colorpress.core.errors import ColorpressError
    from colorpress.core.stages import run_stage

    dice = np.random.default_rng((seed, number))
    run = folder / "run"
    if not run.is_dir():
        shutil.copytree(EXAMPLE, run, ignore=shutil.ignore_patterns("*.html", "*.md"))
        (run / "best-int8").mkdir()
        shutil.copy(EXAMPLE.parent / "example-students" / "best-int8" / "int8.json", run / "best-int8")
        run_stage(run, "stage", "key", lambda: ([run / "benchmark.csv"], {"figure": 1.0}))
    names = ["benchmark.json", "benchmark.json", "smallest/plan.json", "pruned/plan.json", "best-int8/int8.json"]
    path = run / pick(dice, [*names, "layer_ranking.csv", ".stages/stage.json"])
    content = path.read_bytes()
    path.write_bytes((damage_bytes if path.suffix == ".csv" else damage_json)(content, dice))
    outcome = "read"
    try:
        if path.parent.name == ".stages":
            record = run_stage(run, "stage", "key", lambda: ([run / "benchmark.csv"], {"figure": 1.0}))
            assert record.result == {"figure": 1.0}
        else:
            write_report(run)
            compare_benchmarks(EXAMPLE / "benchmark.json", run / "benchmark.json", [])
    except ColorpressError:
        outcome = "refused"
    finally:
        path.write_bytes(content)
    return outcome


def damaged_options(seed: int, number: int, folder: Path) -> str:
    from colorpress.command_options import load_options, make_settings
    from colorpress.core.errors import ColorpressError

    dice = np.random.default_rng((seed, number))
    path = folder / pick(dice, ["config.toml", "config.resolved.toml"])
    lines = (EXAMPLE / "config.resolved.toml").read_text().splitlines()
    values = [
        *("nan", "inf", "-1", "true", "''", "'\\u0000'", '"\\u0000"', "[]", "[[1]]", "{}", "1979-05-27", "1" * 5000),
        *("[" * 5000, "1e999", "'x'", "[nan]", "0x", "9223372036854775808", '["/dev/zero"]'),
    ]
    if dice.random() < 0.6:
        place = int(dice.integers(len(lines)))
        lines[place] = f"{lines[place].partition('=')[0]}= {pick(dice, values)}"
        path.write_text("\n".join(lines))
    else:
        path.write_bytes(damage_bytes("\n".join(lines).encode(), dice))
    try:
        load_options(path)
        make_settings(folder, {}).to_toml()
    except ColorpressError:
        return "refused"
    finally:
        path.unlink()
    return "read"


TASKS: dict[str, Task] = {
    "checkpoints": damaged_checkpoint,
    "pickles": hostile_pickle,
    "journals": damaged_journal,
    "plans": damaged_plan,
    "records": damaged_record,
    "options": damaged_options,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="checkpoints; 3/20 as many of each other kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=sorted(TASKS), help="one kind alone; repeat it for more")
    parser.add_argument("--child", choices=sorted(TASKS), help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        run_child(TASKS[given.child], given.seed, given.start, given.count, given.folder)
        return 0
    counts = dict.fromkeys(TASKS, max(1, given.count * 3 // 20))
    counts |= {"checkpoints": given.count, "pickles": len(hostile_pickles())}
    figures = Figures()
    for task in given.only or TASKS:
        with tempfile.TemporaryDirectory() as folder:
            torture(figures, "tests.torture.damaged_files", task, given.seed, counts[task], Path(folder))
    return figures.finish()


if __name__ == "__main__":
    sys.exit(main())
