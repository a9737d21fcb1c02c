"""The training loop: what it keeps, how it goes on, when it stops."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from colorpress.core.config import DataConfig, MachineConfig, Recipe, UNetConfig
from colorpress.core.errors import ConfigError, DivergedError, InputError, Interrupted, MachineError
from colorpress.core.locks import locked_folder
from tests.conftest import make_network
from training.batches import AnswerFolder
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.device import choose_layout, float32_pictures
from training.fitting import FitFiles, FitJob, FitResult, _RunningAverage, _seed_dropout, fit_network, forget_fit
from training.losses import Batch, ChromaClassLoss, L1Loss, Loss
from training.metrics import validate_l1
from training.network import GraphArchitecture
from training.original import train_unet
from training.photo_scan import scan_photos
from training.photo_split import PhotoSplit
from training.unet import UNet, UNetPlan, hash_weights

RECIPE = Recipe(epochs=3, batch_size=8, imgsz=16, val_size=24, learning_rate=5e-3, class_weight=0.0, precision="fp32")
STEPS = 9  # of an epoch: seven photographs of the fixture, ten crops of each, in batches of eight
MACHINE = MachineConfig(workers=0, threads=1, device="cpu")
LIMITS = {"short_side": 24, "max_pixels": DataConfig().max_pixels, "device": torch.device("cpu")}


@pytest.fixture
def split(photo_folder: Path) -> PhotoSplit:
    return scan_photos(DataConfig(data=photo_folder, val_share=0.2), workers=0)


Losses = Callable[[Tensor, Tensor], Tensor]


def watch_(criterion: Loss, watch: Losses) -> None:
    """Send each loss of `criterion` by way of a function of the test's own: (what was answered, loss) -> loss."""
    loss_of = criterion.loss

    def watched(answered: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, l1 = loss_of(answered, batch)
        return watch(answered, loss), l1

    criterion.loss = watched  # type: ignore[method-assign]


def fit(
    split: PhotoSplit,
    folder: Path,
    recipe: Recipe = RECIPE,
    network: UNet | None = None,
    watch: Losses | None = None,
    machine: MachineConfig = MACHINE,
    restart: bool = False,
) -> FitResult:
    job = FitJob(split.train, split.val, recipe, DataConfig(), machine)
    files = FitFiles(folder / "best.pt", extra={}, restart=restart)
    network = network or make_network()
    network.dropout.p = recipe.dropout
    criterion = ChromaClassLoss(network, recipe.class_weight) if recipe.class_weight else L1Loss(network)
    if watch is not None:
        watch_(criterion, watch)
    return fit_network(criterion, job, files, label="fit")


def weights(path: Path) -> list[Tensor]:
    return list(load_checkpoint(path).state_dict.values())


def same(first: Path, second: Path) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def test_training_lowers_the_loss_and_best_is_the_lowest_validation_l1(split: PhotoSplit, tmp_path: Path) -> None:
    fitted = fit(split, tmp_path, replace(RECIPE, epochs=6))
    assert [row["epoch"] for row in fitted.history] == [1, 2, 3, 4, 5, 6]
    assert fitted.history[-1]["train_l1"] < 0.9 * fitted.history[0]["train_l1"]
    best = load_checkpoint(tmp_path / "best.pt")
    assert best.val_l1 == min(row["val_l1"] for row in fitted.history)
    assert fitted.history[best.epoch - 1]["val_l1"] == best.val_l1
    assert best.training_state is None
    assert load_checkpoint(tmp_path / "last.pt").epoch == 6


@pytest.mark.parametrize("recipe", [
    RECIPE, replace(RECIPE, schedule="plateau", plateau_patience=1), replace(RECIPE, ema_decay=0.0, dropout=0.3),
    replace(RECIPE, class_weight=0.1),
])  # fmt: skip
@pytest.mark.parametrize("stopping_step", [0, 8, 14, 18])
def test_a_fit_stopped_by_a_signal_goes_on_to_the_same_bit(
    split: PhotoSplit, tmp_path: Path, recipe: Recipe, stopping_step: int
) -> None:
    fit(split, tmp_path / "whole", recipe)
    steps = 0

    def stop_once(answer: Tensor, loss: Tensor) -> Tensor:
        nonlocal steps
        if steps == stopping_step:
            os.kill(os.getpid(), signal.SIGTERM)
        steps += 1
        return loss

    # A signal that the fit would not hold fails this test alone.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(Interrupted) as stopped:
            fit(split, tmp_path / "cut", recipe, watch=stop_once)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, before if number == signal.SIGTERM else signal.default_int_handler)
    assert stopped.value.exit_code == 143
    # The step that the signal came in is finished and kept.
    state = load_checkpoint(tmp_path / "cut" / "last.pt").training_state
    assert state is not None
    assert load_checkpoint(tmp_path / "cut" / "last.pt").epoch * STEPS + state["step"] == stopping_step + 1
    resumed = fit(split, tmp_path / "cut", recipe)
    assert steps == stopping_step + 1
    assert resumed.epochs_run == 3 - stopping_step // STEPS
    assert [{**row, "seconds": 0, "images_per_s": 0} for row in resumed.history] == [
        {**row, "seconds": 0, "images_per_s": 0} for row in load_checkpoint(tmp_path / "whole" / "last.pt").history
    ]
    assert same(tmp_path / "whole" / "last.pt", tmp_path / "cut" / "last.pt")
    assert same(tmp_path / "whole" / "best.pt", tmp_path / "cut" / "best.pt")


def test_a_signal_while_validating_keeps_the_steps_of_the_epoch(
    split: PhotoSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(split, tmp_path / "whole")

    def interrupted(*arguments: object, **options: object) -> float:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr("training.fitting.validate_l1", interrupted)
    with pytest.raises(Interrupted):
        fit(split, tmp_path / "cut")
    monkeypatch.undo()
    steps = 0

    def counted(answer: Tensor, loss: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        return loss

    fit(split, tmp_path / "cut", watch=counted)
    assert steps == 2 * STEPS
    assert same(tmp_path / "whole" / "last.pt", tmp_path / "cut" / "last.pt")


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_the_older_generation_serves_when_the_newer_is_damaged(
    split: PhotoSplit, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(split, tmp_path / "whole")
    fit(split, tmp_path / "cut")
    last = tmp_path / "cut" / "last.pt"
    assert load_checkpoint(tmp_path / "cut" / "last.prev.pt").epoch == 2
    if damage == "missing":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[:-1000])
    assert fit(split, tmp_path / "cut").epochs_run == 1
    assert ("going on from last.prev.pt" in capsys.readouterr().err) is (damage == "truncated")
    assert same(tmp_path / "whole" / "last.pt", last)


def test_two_damaged_generations_are_refused_unless_forced(split: PhotoSplit, tmp_path: Path) -> None:
    fit(split, tmp_path)
    for name in ("last.pt", "last.prev.pt"):
        (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(ConfigError, match="damaged training"):
        fit(split, tmp_path)
    assert fit(split, tmp_path, restart=True).epochs_run == 3


@pytest.mark.parametrize(("missing", "said"), [("last", "best.pt without"), ("best", "last.pt without")])
def test_half_of_a_training_is_refused(split: PhotoSplit, tmp_path: Path, missing: str, said: str) -> None:
    fit(split, tmp_path)
    if missing == "last":
        forget_fit(tmp_path)
    else:
        (tmp_path / "best.pt").unlink()
    with pytest.raises(ConfigError, match=said):
        fit(split, tmp_path)


def test_best_alone_after_a_kill_in_the_first_epoch_is_trained_again(split: PhotoSplit, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1)
    fit(split, tmp_path, recipe)
    forget_fit(tmp_path)
    assert fit(split, tmp_path, recipe).epochs_run == 1


def test_early_stopping_ends_the_fit_and_stays_ended(
    split: PhotoSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.5, 0.4, 0.45, 0.41, 0.3, 0.2])
    monkeypatch.setattr("training.fitting.validate_l1", lambda *_, **__: next(values))
    recipe = replace(RECIPE, epochs=6, patience=2)
    stopped = fit(split, tmp_path, recipe)
    assert [row["val_l1"] for row in stopped.history] == [0.5, 0.4, 0.45, 0.41]
    assert load_checkpoint(tmp_path / "best.pt").epoch == 2
    assert fit(split, tmp_path, recipe).epochs_run == 0


def test_the_kept_weights_are_the_running_average(split: PhotoSplit, tmp_path: Path) -> None:
    fit(split, tmp_path / "average", replace(RECIPE, epochs=1))
    fit(split, tmp_path / "plain", replace(RECIPE, epochs=1, ema_decay=0.0))
    averaged, plain = load_checkpoint(tmp_path / "average" / "last.pt"), load_checkpoint(tmp_path / "plain" / "last.pt")
    assert averaged.training_state is not None
    name = "encoder.0.0.weight"
    assert torch.equal(averaged.training_state["trained"][f"network.{name}"], plain.state_dict[name])
    assert not torch.equal(averaged.state_dict[name], plain.state_dict[name])
    # By hand: the average starts as the first step's weights and moves towards each later step's.
    weights_by_step: list[Tensor] = []
    network = make_network()

    def watched(answer: Tensor, loss: Tensor) -> Tensor:
        weights_by_step.append(network.get_parameter(name).detach().clone())
        return loss

    fit(split, tmp_path / "watched", replace(RECIPE, epochs=1), network=network, watch=watched)
    weights_by_step.append(network.get_parameter(name).detach().clone())
    expected = weights_by_step[1]
    for step, weight in enumerate(weights_by_step[2:], start=1):
        decay = min(RECIPE.ema_decay, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(averaged.state_dict[name], expected)


def test_bf16_training_is_close_to_fp32_and_weights_stay_float32(split: PhotoSplit, tmp_path: Path) -> None:
    wide = fit(split, tmp_path / "fp32")
    narrow = fit(split, tmp_path / "bf16", replace(RECIPE, precision="bf16"))
    assert all(tensor.dtype != torch.bfloat16 for tensor in narrow.best.state_dict.values())
    assert narrow.history[-1]["train_l1"] != wide.history[-1]["train_l1"]
    assert narrow.history[-1]["train_l1"] == pytest.approx(wide.history[-1]["train_l1"], rel=0.02)


def test_what_reads_the_picture_is_not_rounded(split: PhotoSplit, tmp_path: Path) -> None:
    network, seen = make_network(), {}

    def note(name: str, module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        if module.training:
            seen[name] = output.dtype

    for name, each in network.named_modules():
        if isinstance(each, nn.Conv2d):
            each.register_forward_hook(partial(note, name))
    fit(split, tmp_path, replace(RECIPE, epochs=1, precision="bf16"), network)
    stem = next(iter(seen))
    assert len(seen) > 2 and seen == {**dict.fromkeys(seen, torch.bfloat16), stem: torch.float32}
    # Afterwards the network is as it was, also where it was changed before.
    assert not any("forward" in vars(each) for each in network.modules())
    stem_of = dict(network.named_modules())[stem]
    stem_of.forward = own = partial(type(stem_of).forward, stem_of)
    with float32_pictures(network), float32_pictures(network):
        assert stem_of.forward is not own
    assert stem_of.forward is own


def test_a_layer_that_reads_the_picture_may_be_asked_in_any_way() -> None:
    class Masked(nn.Conv2d):
        def forward(self, input: Tensor, mask: Tensor, *, gain: float) -> Tensor:
            return gain * super().forward(input * mask)

    plain, masked = nn.Conv2d(1, 4, 3), Masked(2, 4, 3)
    picture, mask = torch.rand(1, 2, 8, 8).bfloat16(), torch.rand(1, 1, 8, 8) > 0.5
    with torch.inference_mode():
        exact = plain(picture[:, :1].float()), masked(picture.float(), mask, gain=2.0)
        with torch.autocast("cpu", torch.bfloat16), float32_pictures(nn.ModuleList([plain, masked])):
            found = plain(input=picture[:, :1]), masked(picture, mask=mask, gain=2.0)
    assert all(torch.equal(*pair) for pair in zip(found, exact, strict=True))


def test_dropout_changes_training_and_nothing_else(split: PhotoSplit, tmp_path: Path) -> None:
    plain = fit(split, tmp_path / "plain")
    dropped = fit(split, tmp_path / "dropped", replace(RECIPE, dropout=0.5))
    assert plain.history[0]["train_l1"] != dropped.history[0]["train_l1"]
    assert plain.best.architecture == dropped.best.architecture
    # Which channels go is a matter of the seed, whatever the order of the photographs.
    drawn = []
    for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0)):
        _seed_dropout(seed, step)
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_a_finished_fit_trains_no_more(split: PhotoSplit, tmp_path: Path) -> None:
    fit(split, tmp_path)
    before = (tmp_path / "best.pt").read_bytes()
    assert fit(split, tmp_path).epochs_run == 0
    assert (tmp_path / "best.pt").read_bytes() == before


def test_two_fits_are_the_same_and_workers_change_nothing(split: PhotoSplit, tmp_path: Path) -> None:
    fit(split, tmp_path / "a")
    fit(split, tmp_path / "b", machine=replace(MACHINE, workers=1))
    assert same(tmp_path / "a" / "last.pt", tmp_path / "b" / "last.pt")


@pytest.mark.parametrize("change", [{"epochs": 4}, {"dropout": 0.1}, {"learning_rate": 1e-3}])
def test_a_fit_with_other_settings_is_not_overwritten(
    split: PhotoSplit, tmp_path: Path, change: dict[str, float]
) -> None:
    fit(split, tmp_path)
    before = (tmp_path / "best.pt").read_bytes()
    with pytest.raises(ConfigError) as caught:
        fit(split, tmp_path, replace(RECIPE, **change))  # type: ignore[arg-type]
    name, value = next(iter(change.items()))
    assert f"{name} {getattr(RECIPE, name)} -> {value}" in str(caught.value)
    assert (tmp_path / "best.pt").read_bytes() == before
    assert fit(split, tmp_path, replace(RECIPE, **change), restart=True).epochs_run == (change.get("epochs") or 3)  # type: ignore[arg-type]


def test_other_photographs_or_starting_weights_are_another_fit(split: PhotoSplit, tmp_path: Path) -> None:
    fit(split, tmp_path)
    with pytest.raises(ConfigError, match="other starting weights"):
        fit(split, tmp_path, network=make_network(seed=1))
    with pytest.raises(ConfigError, match="other photographs"):
        fit(replace(split, train=split.train[1:]), tmp_path)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_nan_stops_training_and_keeps_the_best_epoch(split: PhotoSplit, tmp_path: Path, kind: str) -> None:
    steps = 0

    def poisoned(answer: Tensor, loss: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        if steps <= 9:  # eight steps are the first epoch
            return loss
        return loss * float("nan") if kind == "loss" else loss + (answer - answer.detach()).clamp(min=0).sqrt().sum()

    with pytest.raises(DivergedError, match="epoch 2"):
        fit(split, tmp_path, watch=poisoned)
    assert load_checkpoint(tmp_path / "best.pt").epoch == 1
    assert load_checkpoint(tmp_path / "last.pt").epoch == 1


def test_photographs_that_have_all_gone_are_an_input_error(split: PhotoSplit, tmp_path: Path) -> None:
    for photo in split.train:
        photo.path.unlink()
    with pytest.raises(InputError, match="no training photograph"):
        fit(split, tmp_path)


def test_train_unet_writes_its_files_and_leaves_the_generator_alone(split: PhotoSplit, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    recipe = Recipe(epochs=2, batch_size=8, imgsz=16, val_size=24)
    job = FitJob(split.train, split.val, recipe, DataConfig(), MACHINE)
    trained = train_unet(job, UNetConfig(base=4, depth=2), tmp_path).best
    assert torch.equal(torch.rand(1), expected)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "best.pt", "history.csv", "last.prev.pt", "last.pt", "training_loss.png",
    ]  # fmt: skip
    best = load_checkpoint(tmp_path / "best.pt")
    assert (best.epoch, best.val_l1) == (trained.epoch, trained.val_l1)
    assert math.isfinite(trained.val_l1)


def test_a_training_goes_on_from_a_unet_and_keeps_it_where_no_epoch_is_better(
    split: PhotoSplit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe(epochs=3, batch_size=8, imgsz=16, val_size=24)
    job = FitJob(split.train, split.val, recipe, DataConfig(), MACHINE)
    unet = UNetConfig(base=4, depth=2)
    first = train_unet(job, unet, tmp_path / "first").best
    started = replace(unet, base=8, start_from=tmp_path / "first" / "best.pt")  # its channels, not those asked for
    further = train_unet(job, started, tmp_path / "further").best
    assert further.architecture == first.architecture
    assert further.val_l1 < first.val_l1

    harmful = replace(job, recipe=replace(recipe, epochs=1, learning_rate=1.0))
    for _ in ("trained", "found finished"):
        kept = train_unet(harmful, started, tmp_path / "kept").best
        assert (kept.epoch, kept.val_l1) == (0, pytest.approx(first.val_l1))
        found = load_checkpoint(tmp_path / "kept" / "best.pt")
        assert found.epoch == 0
        assert all(torch.equal(found.state_dict[name], tensor) for name, tensor in first.state_dict.items())
    assert "no epoch is better than the start" in capsys.readouterr().err


def test_a_student_without_a_decoder_is_trained_further_too(split: PhotoSplit, tmp_path: Path) -> None:
    student = UNet(UNetPlan(((4, 4),), (), "nearest", stem_stride=8))
    save_checkpoint(tmp_path / "student.pt", Checkpoint(student.architecture, student.state_dict()))
    recipe = Recipe(epochs=1, batch_size=8, imgsz=16, val_size=24, class_weight=0.05)
    job = FitJob(split.train, split.val, recipe, DataConfig(), MACHINE)
    further = train_unet(job, UNetConfig(start_from=tmp_path / "student.pt"), tmp_path / "further").best
    assert further.architecture == student.architecture


def test_one_crop_that_leaves_one_value_at_the_deepest_level_is_learned_from(split: PhotoSplit, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1, batch_size=1, imgsz=16, size_jitter=0.0)
    job = FitJob(split.train, split.val, recipe, DataConfig(), MACHINE)
    best = train_unet(job, UNetConfig(base=4, depth=4), tmp_path).best  # 16 pixels are one at the deepest level
    assert math.isfinite(best.val_l1)


def test_a_training_that_starts_from_something_else_is_refused(split: PhotoSplit, tmp_path: Path) -> None:
    job = FitJob(split.train, split.val, Recipe(epochs=1, imgsz=16, val_size=24), DataConfig(), MACHINE)
    save_checkpoint(tmp_path / "tuned.pt", Checkpoint(GraphArchitecture("0" * 64, 4), {"weight": torch.zeros(1)}))
    with pytest.raises(InputError, match=r"tuned\.pt"):
        train_unet(job, UNetConfig(start_from=tmp_path / "tuned.pt"), tmp_path)


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(split: PhotoSplit, tmp_path: Path) -> None:
    plain = fit(split, tmp_path / "plain", replace(RECIPE, epochs=1))
    compiled = fit(split, tmp_path / "compiled", replace(RECIPE, epochs=1, compile=True))
    assert compiled.history[0]["train_l1"] == pytest.approx(plain.history[0]["train_l1"], rel=1e-3)
    assert list(compiled.best.state_dict) == list(plain.best.state_dict)


def test_without_a_compiler_compile_is_refused(
    split: PhotoSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(MachineError, match="no C\\+\\+ compiler"):
        fit(split, tmp_path, replace(RECIPE, compile=True))


def test_fp16_needs_a_gpu(split: PhotoSplit, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp16"):
        fit(split, tmp_path, replace(RECIPE, precision="fp16"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_learns_what_a_cpu_does(split: PhotoSplit, tmp_path: Path, precision: str) -> None:
    cpu = fit(split, tmp_path / "cpu")
    gpu = fit(
        split,
        tmp_path / "gpu",
        replace(RECIPE, precision=precision),
        machine=replace(MACHINE, device="cuda", workers=1),
    )
    assert gpu.history[-1]["train_l1"] == pytest.approx(cpu.history[-1]["train_l1"], rel=0.05)


def test_a_batch_smaller_than_the_processes_is_refused(
    split: PhotoSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.fitting.process_count", lambda: 9)
    with pytest.raises(ConfigError, match="got 8 for 9 processes"):
        fit(split, tmp_path)
    assert not list(tmp_path.glob("*.pt"))


def test_the_best_epoch_may_be_the_one_that_is_nearest_to_a_teacher(split: PhotoSplit, tmp_path: Path) -> None:
    """A teacher that answers violet everywhere, which no training on the truth gets nearer to."""
    violet = AnswerFolder(tmp_path / "violet")
    for photo in split.val:
        violet.write(photo, torch.tensor([0.7, -0.7])[None, :, None, None].expand(1, 2, 24, 29))
    job = FitJob(split.train, split.val, RECIPE, DataConfig(), MACHINE, target=violet)
    network = make_grey()
    assert validate_l1(network, split.val, **LIMITS, target=violet) == pytest.approx(0.7, abs=1e-3)
    fitted = fit_network(L1Loss(network), job, FitFiles(tmp_path / "to" / "best.pt", extra={}), label="fit")
    distances = [row["val_l1"] for row in fitted.history]
    assert min(distances) > 0.5 and fitted.best.val_l1 == min(distances)
    best = load_checkpoint(tmp_path / "to" / "best.pt").build_network()
    assert validate_l1(best, split.val, **LIMITS, target=violet) == pytest.approx(min(distances), rel=1e-4)
    with pytest.raises(ConfigError, match="target violet -> the truth"):
        fit(split, tmp_path / "to", network=make_grey())


def make_grey() -> UNet:
    network = make_network()
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.zeros_(network.head.bias)
    return network


def test_an_answer_that_is_missing_ends_a_validation(split: PhotoSplit, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="are missing or damaged"):
        validate_l1(make_network(), split.val, **LIMITS, target=AnswerFolder(tmp_path))
    # Not the photographs' fault, for which training would leave them out one by one.
    with pytest.raises(MachineError, match="was removed or replaced"), locked_folder(tmp_path / "run"):
        (tmp_path / "run").rename(tmp_path / "away")
        AnswerFolder(tmp_path / "run" / ".answers").read(split.val[0])


def test_the_running_average_is_that_of_pytorch_to_the_same_bit() -> None:
    network = make_network().train()
    own, theirs = _RunningAverage(network), AveragedModel(network, use_buffers=True)
    for decay in (0.1, 0.5, 0.9):
        network(torch.rand(2, 1, 8, 8))  # batch norms count and measure
        for parameter in network.parameters():
            parameter.data.add_(torch.randn_like(parameter))
        theirs.multi_avg_fn = get_ema_multi_avg_fn(decay)
        theirs.update_parameters(network)
        own.update_(decay)
    assert hash_weights(own.network) == hash_weights(theirs.module) != hash_weights(network)


@pytest.mark.parametrize(
    ("convolution", "layout"),
    [
        (nn.Conv2d(15, 32, 1, stride=2), torch.contiguous_format),
        (nn.Conv2d(16, 32, 1, stride=2), torch.channels_last),
        (nn.Conv2d(15, 32, 1), torch.channels_last),
        (nn.Conv2d(15, 32, 3, stride=2, padding=1), torch.channels_last),
    ],
)
def test_channels_are_innermost_but_where_that_is_not_safe(convolution: nn.Conv2d, layout: torch.memory_format) -> None:
    """tests/test_foreign_run.py trains such a network, which ended the process with AVX2."""
    network = nn.Sequential(nn.Conv2d(1, 15, 3), convolution)
    assert choose_layout(network, torch.device("cpu")) == layout
    assert choose_layout(network, torch.device("cuda")) == torch.channels_last


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_network_learns_in_the_layout_that_is_chosen(
    split: PhotoSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format
) -> None:
    """The weights alone decide it, since L has one channel."""
    monkeypatch.setattr("training.fitting.choose_layout", lambda *_: layout)
    seen: list[torch.Size | tuple[int, ...]] = []
    network = make_network()
    hidden = next(each for each in network.modules() if isinstance(each, nn.Conv2d) and each.in_channels > 1)
    hidden.register_forward_hook(lambda _, given, answer: seen.append((given[0].stride()[1], answer.stride()[1])))
    fit(split, tmp_path, replace(RECIPE, epochs=1), network=network)
    innermost = layout == torch.channels_last
    assert all((given == 1, answered == 1) == (innermost, innermost) for given, answered in seen[:STEPS])
    assert len(seen) >= STEPS
