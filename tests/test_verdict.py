"""The verdict on synthetic rows of every kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from benchmarks import verdict as verdicts
from benchmarks.rows import Row
from benchmarks.verdict import Verdict, parent_name, why_rejected
from compress.measures import CONTENT, Strength
from export.controls import CONTROL_TITLES, TABLE
from export.timing import Ratio


def row(model: str, **changes: Any) -> Row:
    """A finished row on the CPU, equal to best.pt but for `changes`."""
    standard = {
        "model": model, "variant": model.partition(" @ ")[0].partition(", ")[0], "peer": False,
        "runtime": "torch" if model.endswith(".pt") else "onnxruntime", "device": "cpu",
        "batch": 1, "height": 256, "width": 256, "threads": 2,
        "size_bytes": 31_100_000, "weights_bytes": 31_000_000, "p50_ms": 100.0, "speedup": 1.0, "photos": 100,
        "l1": 0.1, "l1_delta_pct": 0.0, "retained_colour": 1.0, "retained_low": 0.99, "retained_high": 1.01,
        "content_colour": 1.0, "content_low": 0.99, "content_high": 1.01,
        "fidelity": 0.95, "fidelity_low": 0.94, "fidelity_high": 0.96, "status": "ok", "error": "",
    }  # fmt: skip
    return Row(**{**standard, **changes})


def halves(choosing: float, confirming: float, margin: float = 0.01) -> dict[str, float]:
    """What is kept on the half that chooses and on the other, where two thirds of the margin are for confidence."""
    low, high = confirming - margin, confirming + margin
    return {
        "choosing_kept": choosing, "confirming_kept": confirming, "confirming_low": low, "confirming_high": high,
        "choosing_likely": choosing - 0.66 * margin, "confirming_photos": 50, "confirming_l1_delta_pct": 0.0,
    }  # fmt: skip


STRONG = Strength(100, 20.0, 18.0, 16.0, 20.0, 0.6)
WEAK = Strength(100, 14.0, 2.4, 1.0, 4.0, 0.5)
VIVID = Strength(100, -3.0, -6.0, -8.0, -4.0, 1.2)
GREY = Strength(100, math.nan, math.nan, math.nan, math.nan, math.nan)


def judge_rows(
    rows: Sequence[Row], aa_ratios: Mapping[str, Ratio] | None = None, strength: Strength | None = STRONG
) -> Verdict:
    """The verdict beside an original whose content decides."""
    return verdicts.judge_rows(rows, aa_ratios or {}, strength)


BEST = row("best.pt")
SMALL = {"size_bytes": 3_100_000, "weights_bytes": 3_000_000, "p50_ms": 20.0, "speedup": 5.0}


def test_the_sentence_holds_the_figures() -> None:
    good = row("pruned", **SMALL, l1_delta_pct=0.456, content_colour=0.972, content_low=0.961, content_high=0.983)
    verdict = judge_rows([BEST, good])
    assert verdict.recommended == "pruned"
    assert verdict.sentence == (
        "pruned is recommended: 10.0 times smaller than best.pt (3.10 MB instead of 31.0 MB) and 5.00 times as fast "
        "(20.0 ms instead of 100 ms), with 0.46 % more L1 and 0.97 of the content colour kept (95 % interval 0.96 to "
        "0.98); the same photographs chose and scored it."
    )
    assert verdict.notes == ()


def test_the_training_state_of_a_checkpoint_is_no_compression() -> None:
    heavy = row("best.pt", size_bytes=93_000_000)
    assert heavy.fair_size_bytes == 31_000_000
    assert (
        "10.0 times smaller than best.pt (3.10 MB instead of 31.0 MB)"
        in judge_rows([heavy, row("pruned", **SMALL)]).sentence
    )


@pytest.mark.parametrize("runtime", ["torch", "torch-bf16", "torch-channels-last", "torch-compile"])
def test_a_checkpoint_counts_its_weights_alone_whatever_in_pytorch_runs_it(runtime: str) -> None:
    assert row("best.pt @ x", size_bytes=93_000_000, runtime=runtime).fair_size_bytes == 31_000_000
    assert row("best", size_bytes=93_000_000).fair_size_bytes == 93_000_000  # of a graph the file is what is shipped
    assert row("best.pt", weights_bytes=None).fair_size_bytes == 31_100_000


def test_the_largest_product_of_size_and_speed_wins() -> None:
    a = row("a", size_bytes=3_100_000, speedup=2.0, p50_ms=50.0)  # 10 x 2
    b = row("b", size_bytes=6_200_000, speedup=5.0, p50_ms=20.0)  # 5 x 5
    assert judge_rows([BEST, a, b]).recommended == "b"
    assert judge_rows([BEST, b, a]).recommended == "b"


def test_an_int8_variant_slower_than_its_parent_is_never_recommended() -> None:
    parent = row("pruned", **SMALL)
    child = row("pruned-int8", **{**SMALL, "size_bytes": 800_000, "p50_ms": 25.0, "speedup": 4.0})
    assert judge_rows([BEST, parent, child]).recommended == "pruned"
    assert "1.25 times as slow as its float32 parent pruned" in why_rejected(child, BEST, [parent, child], CONTENT)
    # Where best.pt's own time varies as much, that says nothing.
    assert why_rejected(child, BEST, [parent, child], CONTENT, noise=0.3) == ""
    # Not even alone: its parent lost the colour, so nothing is left.
    lost = replace(parent, content_colour=0.5)
    assert judge_rows([BEST, lost, child]).recommended is None
    # A tie within what noise explains goes to the smaller file.
    for speedup in (4.95, 6.0):
        assert judge_rows([BEST, parent, replace(child, speedup=speedup)]).recommended == "pruned-int8"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"content_colour": 0.94, "l1_delta_pct": 0.9}, "keeps 0.94 of the content colour"),
        ({"speedup": 0.5}, "slower than best.pt (0.50 of its speed)"),
        ({"size_bytes": 31_000_000, "speedup": 1.01}, "neither smaller nor faster"),
        ({"content_colour": None}, "no variant finished"),
    ],
)
def test_what_fails_a_limit_is_not_recommended(changes: dict[str, Any], reason: str) -> None:
    verdict = judge_rows([BEST, row("x", **{**SMALL, **changes})])
    assert verdict.recommended is None
    assert reason in verdict.sentence
    assert verdict.closest == (None if "no variant finished" in reason else "x")
    assert ("benchmark.csv" if verdict.closest is None else "learn for longer") in verdict.advice


def test_where_nothing_is_recommended_it_says_what_to_do() -> None:
    lost = row("x", **SMALL, content_colour=0.3, fidelity=0.3)
    assert judge_rows([BEST, lost], None, WEAK).advice.startswith("best.pt itself paints little more than tint: train")
    assert "--eval-photos" in judge_rows([replace(BEST, photos=0), lost]).advice
    assert "prune, quantize or distil" in judge_rows([BEST]).advice
    assert "measure again" in judge_rows([replace(BEST, status="oom")]).advice
    assert judge_rows([BEST, row("x", **SMALL)]).advice == ""


@pytest.mark.parametrize("status", ["error", "oom", "timeout", "crashed(SIGSEGV)"])
def test_what_failed_is_not_recommended_but_named(status: str) -> None:
    failed = row("x", status=status, l1=None, l1_delta_pct=None, retained_colour=None, p50_ms=None, speedup=None)
    verdict = judge_rows([BEST, failed])
    assert verdict.recommended is None
    assert verdict.sentence == "Nothing can be recommended: no variant finished."
    assert verdict.notes == (f"Not finished: x ({status}).",)
    assert judge_rows([BEST, failed, row("pruned", **SMALL)]).recommended == "pruned"


def test_noise_of_the_machine_counts() -> None:
    same_size = row("x", size_bytes=31_000_000, speedup=1.2, p50_ms=83.0)
    assert judge_rows([BEST, same_size]).recommended == "x"
    noisy = judge_rows([BEST, same_size], {"cpu": Ratio(0.9, 0.8, 1.0)})
    assert noisy.recommended is None
    assert "differs by 20 %, so differences below 60 % mean nothing" in noisy.notes[0]


def test_few_photographs_are_said_to_be_few() -> None:
    notes = judge_rows([row("best.pt", photos=3), row("pruned", **SMALL)]).notes
    assert notes == ("3 photographs show the machinery, not colour quality: test on 50 or more to judge it.",)
    assert "1 photograph shows" in judge_rows([row("best.pt", photos=1)]).notes[0]
    assert judge_rows([row("best.pt", photos=50)]).notes == ()


def test_an_interval_below_the_limit_is_said() -> None:
    notes = judge_rows([BEST, row("pruned", **SMALL, content_colour=0.96, content_low=0.94)]).notes
    assert notes == ("The interval of content colour reaches below 0.95 for pruned.",)


def test_an_original_without_colour_leaves_nothing_to_keep() -> None:
    grey = row("best.pt", content_colour=None, fidelity=None)
    other = row("x", **SMALL, content_colour=None, fidelity=None)
    assert "best.pt answers grey" in judge_rows([grey, other], None, WEAK).sentence
    verdict = verdicts.judge_rows([grey, other], {}, GREY)
    assert verdict.recommended is None and "these photographs hold none" in verdict.sentence
    assert verdict.notes == ()


def test_without_a_baseline_there_is_no_verdict() -> None:
    assert judge_rows([]).recommended is None
    verdict = judge_rows([row("best.pt", status="oom"), row("x", **SMALL)])
    assert (verdict.recommended, "best.pt itself was not measured: oom" in verdict.sentence) == (None, True)
    assert "only best.pt" in judge_rows([BEST]).sentence


def test_another_device_is_not_compared() -> None:
    gpu = row("best @ cuda", **{**SMALL, "device": "cuda", "speedup": 50.0})
    assert judge_rows([BEST, gpu, row("pruned", **SMALL)]).recommended == "pruned"


def test_less_error_than_best_is_said_so() -> None:
    sentence = judge_rows([BEST, row("x", **SMALL, l1_delta_pct=-0.5)]).sentence
    assert "with 0.50 % less L1" in sentence


def test_parents() -> None:
    assert parent_name("pruned-int8") == "pruned"
    assert parent_name("best-int8 @ cuda") == "best @ cuda"
    assert parent_name("best") is None


def test_what_slows_an_int8_file_is_named() -> None:
    parent = row("pruned", **SMALL)
    slow = row("pruned-int8", **{**SMALL, "speedup": 2.5}, caution="31% of its time is conversions")
    reason = why_rejected(slow, BEST, [parent, slow], CONTENT)
    assert reason == "is 2.00 times as slow as its float32 parent pruned, since 31% of its time is conversions"


def test_packed_weights_have_a_parent_too() -> None:
    assert parent_name("auto-w8 @ openvino") == "auto @ openvino"
    assert parent_name("auto") is None


@pytest.mark.parametrize("condition", [{"batch": 8}, {"height": 512, "width": 512}, {"threads": 1}, {"device": "cuda"}])
def test_another_condition_is_neither_recommended_nor_a_parent(condition: dict[str, Any]) -> None:
    elsewhere = row("auto, elsewhere", **{**SMALL, "speedup": 99.0}, **condition)
    assert judge_rows([BEST, elsewhere]).recommended is None
    int8 = row("auto-int8", **{**SMALL, "size_bytes": 800_000})
    parent = replace(elsewhere, model="auto", variant="auto")
    assert judge_rows([BEST, parent, int8]).recommended == "auto-int8"


def test_a_peer_is_never_recommended() -> None:
    peer = row("nncf-int8", **{**SMALL, "speedup": 500.0}, peer=True)
    verdict = judge_rows([BEST, peer])
    assert (verdict.recommended, "only best.pt was measured" in verdict.sentence) == (None, True)
    assert judge_rows([BEST, peer, row("pruned", **SMALL)]).recommended == "pruned"


def test_an_interval_of_a_peer_is_no_limit_of_ours() -> None:
    peer = row("nncf-int8", **SMALL, peer=True, content_colour=0.96, content_low=0.9)
    assert judge_rows([BEST, peer]).notes == ()


def test_the_parent_is_looked_up_in_the_same_runtime_first() -> None:
    parent = row("auto", **{**SMALL, "speedup": 10.0})
    slow_parent = row("auto @ openvino", **{**SMALL, "speedup": 4.0})
    child = row("auto-int8 @ openvino", **{**SMALL, "size_bytes": 800_000, "speedup": 5.0})
    assert why_rejected(child, BEST, [parent, slow_parent, child], CONTENT) == ""
    assert "2.00 times as slow as its float32 parent auto" in why_rejected(child, BEST, [parent, child], CONTENT)


def test_best_in_another_runtime_is_no_compression_but_its_speed_is_said() -> None:
    bf16 = row("best.pt @ torch-bf16", p50_ms=40.0, speedup=2.5)
    assert judge_rows([BEST, bf16]).recommended is None
    verdict = judge_rows([BEST, bf16, row("pruned", **SMALL)])
    assert verdict.recommended == "pruned"
    assert verdict.notes == (
        "Of the 5.00 times, 2.50 come from the runtime: best.pt's own network takes 40.0 ms as best.pt @ torch-bf16.",
    )


def test_time_alone_gives_no_verdict() -> None:
    blind = {"photos": 0, "l1": None, "l1_delta_pct": None, "content_colour": None, "fidelity": None}
    verdict = judge_rows([row("best.pt", **blind), row("pruned", **SMALL, **blind)], None, None)
    assert (verdict.recommended, verdict.notes) == (None, ())
    assert "colours were not measured" in verdict.sentence


def test_what_is_reported_is_what_did_not_choose() -> None:
    lucky = row("pruned", **SMALL, **halves(0.99, 0.97), content_colour=0.98)
    sentence = judge_rows([BEST, lucky]).sentence
    assert sentence.endswith(
        "with the same L1 and 0.97 of the content colour kept (95 % interval 0.96 to 0.98) on 50 photographs that did "
        "not choose it (0.99 on the 50 that did)."
    )
    # By all photographs it would do, but not for sure by those that choose.
    unsure = judge_rows([BEST, replace(lucky, choosing_likely=0.94)])
    assert unsure.recommended is None
    assert "keeps 0.94 of the content colour with 80 % confidence (at least 0.95 passes)" in unsure.sentence
    # The other half has no say, whatever it reports.
    unlucky = judge_rows([BEST, replace(lucky, **halves(0.99, 0.80))])
    assert unlucky.recommended == "pruned" and "0.80 of the content colour kept" in unlucky.sentence
    assert "(0.99 on the 50 that did), which is less than the 0.95 that was likely" in unlucky.sentence
    raised = judge_rows([BEST, replace(lucky, confirming_l1_delta_pct=0.7, l1_delta_pct=0.1)])
    assert "0.70 % more L1" in raised.sentence
    # Nothing can be told for sure of a few photographs, on either half.
    few = judge_rows([BEST, replace(lucky, choosing_likely=None, choosing_kept=None)])
    assert few.recommended is None
    assert "cannot be judged by content colour, since the 50 photographs that choose say nothing" in few.sentence
    nothing = dict.fromkeys(("confirming_kept", "confirming_low", "confirming_high"))
    assert "an unknown share of the content colour kept on 50" in judge_rows([BEST, replace(lucky, **nothing)]).sentence


def test_the_smallest_that_qualifies_wins() -> None:
    large, middle, small = (
        row(name, **{**SMALL, "size_bytes": size}, **halves(1.0, 1.0))
        for name, size in (("a", 3_000_000), ("b", 300_000), ("c", 30_000))
    )
    assert judge_rows([BEST, small, large, middle]).recommended == "c"
    assert judge_rows([BEST, replace(small, choosing_likely=0.9), large, middle]).recommended == "b"


@pytest.mark.parametrize("strength", [WEAK, VIVID])
def test_fidelity_decides_where_content_cannot(strength: Strength) -> None:
    best, faithful = (
        row("best.pt", fidelity=1.0),
        row("x", **SMALL, fidelity=0.93, content_colour=-2.0, l1_delta_pct=9.0),
    )
    verdict = verdicts.judge_rows([best, faithful], {}, strength)
    assert verdict.recommended == "x"
    assert "with 0.93 of best.pt's own colours (F) reproduced (95 % interval 0.94 to 0.96)" in verdict.sentence
    assert ("train it on more photographs" in verdict.sentence) is (strength is WEAK)
    lost = verdicts.judge_rows([best, replace(faithful, fidelity=0.79)], {}, strength)
    assert lost.recommended is None and "keeps 0.79 of best.pt's own colours (F) (at least 0.8 passes)" in lost.sentence
    assert verdicts.judge_rows([best, faithful], {}, STRONG).recommended is None


@pytest.mark.parametrize("strength", [WEAK, replace(WEAK, below_table_low=math.nan), replace(WEAK, chroma_share=0.01)])
def test_only_what_was_found_of_an_original_is_held_against_it(strength: Strength) -> None:
    sentence = judge_rows([BEST, row("x", **SMALL)], None, strength).sentence
    advice = strength.weakness.advice if strength.weakness else None
    assert sentence.endswith(f". {advice}" if advice else "the same photographs chose and scored it.")
    assert ("paints little more than tint" in sentence) == (strength is WEAK)


def test_a_control_is_never_recommended_and_what_it_keeps_of_g_is_said() -> None:
    title = CONTROL_TITLES[TABLE]
    table = replace(row(title, **SMALL, retained_colour=0.85), control=TABLE, p50_ms=None, speedup=None)
    verdict = judge_rows([BEST, table])
    assert (verdict.recommended, "only best.pt was measured" in verdict.sentence) == (None, True)
    assert verdict.notes == ("A lightness table, which sees no picture, keeps 0.85 of G here: G says little.",)
    assert judge_rows([BEST, replace(table, retained_colour=0.1)]).notes == ()
    assert judge_rows([BEST, table, row("pruned", **SMALL)]).recommended == "pruned"
