"""What is kept of best.pt's colours, by which measure, and how strong best.pt is: one meaning for all that judges.

L1 alone is blunt, and so is its share of the gain over grey (G): one tint of all pictures keeps much of that. Content
colour (C) counts what only looking at the picture can give, and fidelity (F) how much of best.pt's own colours is
reproduced, be they true or not. C decides where best.pt is clearly better than a table of colours by lightness, else F.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from colorpress.core.files import with_nan, without_nan
from colorpress.core.text import format_interval
from training.metrics import Floats, kept_interval, kept_share

# In standard errors: what is kept has to be so far above a goal. 90 % confidence of each is 80 % of the one that is
# chosen, since the winner of many is partly the luckiest (measured by `benchmarks.studies.choice_coverage`).
MARGIN = 1.282
# How sure that makes of a promise about other photographs, as the end of a sentence.
CONFIDENTLY = "with 80 % confidence"
# Both ends of the interval of a normal distribution that holds 95 %.
_NINETEEN_IN_TWENTY = 1.960
# Percent that best.pt's L1 has to be below a lightness table's before content is what is measured.
CLEARLY_BETTER_PCT = 5.0
# Of the truth's chroma; sepia has a third.
_HARDLY_ANY = 0.1
# Mean L1 (ab/128) of the grey answer below which photographs hold no colour: an eighth of a unit of CIE Lab.
_NO_COLOUR = 1e-3


@dataclass(frozen=True)
class Measure:
    """A share of best.pt's colours: 1 is all, 0 is none, below 0 is worse than none.

    Attributes:
        name: of the figure in `Score`, in `benchmarks.rows.Row` and among goals.
        prefix: of the ends of its 95 % interval, such as "content" of "content_low" and "content_high".
        symbol: a letter.
        title: for people.
        meaning: what it is, as the rest of a sentence.
        whole: what a student has to keep where nobody asks for anything.
        enough: what the verdict of a benchmark asks for.
    """

    name: str
    prefix: str
    symbol: str
    title: str
    meaning: str
    whole: float = 1.0
    enough: float = 0.95

    @property
    def low(self) -> str:
        """The name of the lower end of its interval."""
        return f"{self.prefix}_low"

    @property
    def high(self) -> str:
        """The name of the upper end of its interval."""
        return f"{self.prefix}_high"

    def __str__(self) -> str:
        """Title and symbol, such as "fidelity F"."""
        return f"{self.title} {self.symbol}"

    def show(self, kept: float) -> str:
        """What is kept by it, such as "F 0.912"."""
        return f"{self.symbol} {kept:.3f}"


RETAINED = Measure(
    "retained_colour", "retained", "G", "retained colour", "the share of best.pt's gain over grey that is kept"
)
CONTENT = Measure(
    *("content_colour", "content", "C", "content colour"),
    "the share of best.pt's gain over a table of colours by lightness that is kept",
)
# Another network is never best.pt to the last pixel, and need not be.
FIDELITY = Measure(
    *("fidelity", "fidelity", "F", "fidelity"),
    "the share of best.pt's own colours that is reproduced",
    whole=0.8,
    enough=0.8,
)
MEASURES: Mapping[str, Measure] = {each.name: each for each in (RETAINED, CONTENT, FIDELITY)}


@dataclass(frozen=True)
class Weakness:
    """Why best.pt is not clearly better than answers that see no picture.

    Attributes:
        caution: what it means for all that follows, in a sentence.
        mark: the same in two or three words, for headings.
        advice: what to do before its colours are worth compressing, as a sentence; empty where that helps nothing.
    """

    caution: str
    mark: str
    advice: str = ""


HARDLY_PAINTS = Weakness(
    "It hardly paints at all, so there is next to nothing that a smaller model could keep or lose: train it on more "
    "photographs, or for longer.",
    "measures tint",
    "best.pt itself hardly paints: train it on more photographs, or for longer, first.",
)
VIVID = Weakness(
    "Its L1 is no better than grey's, as that of vivid colours may be, or on photographs of another kind than it "
    "learned from. Of a network of --arch the likely cause is how it is asked: `colorpress adopt` tries --l-range, "
    "--input, --input-norm, --output and --ab-scale. So no share of L1 is measured: what counts is fidelity F, how "
    "much of best.pt's own colours is kept.",
    "measures fidelity alone",
)
NOT_TOLD = Weakness(
    "Without a table of colours by lightness, or on so few photographs, nothing tells whether it sees more than such a "
    "table, so fidelity F decides.",
    "measures fidelity alone",
)
TINT = Weakness(
    "That is not clearly better than a table of colours by lightness, which sees no picture: G and L1 measure tint "
    "here, so fidelity F decides. More photographs or a longer training would make best.pt see more.",
    "measures tint",
    "best.pt itself paints little more than tint: train it on more photographs, or for longer, first.",
)


@dataclass(frozen=True)
class Strength:
    """How much better best.pt is than answers that see no picture, on the same photographs.

    Attributes:
        photos: how many.
        below_grey_pct: its L1 below that of the grey answer, in percent of that; negative where it is above, NaN on
            photographs without colour.
        below_table_pct: the same against a lightness table; NaN without one.
        below_table_low, below_table_high: its 95 % interval; NaN for fewer than two photographs.
        chroma_share: its mean chroma over that of the truth; NaN on photographs without colour.
        self_fidelity: F of its answers to the mirrored photographs, mirrored back; NaN where it was not asked.
    """

    photos: int
    below_grey_pct: float
    below_table_pct: float
    below_table_low: float
    below_table_high: float
    chroma_share: float
    self_fidelity: float = math.nan

    @property
    def beats_grey(self) -> bool:
        """Whether it is truer than grey. Vivid colours, as adversarial training gives them, often are not."""
        return self.below_grey_pct > 0

    @property
    def beats_table(self) -> bool:
        """Whether it is clearly better than a lightness table; one photograph alone says nothing."""
        return self.below_table_low > 0 and self.below_table_pct >= CLEARLY_BETTER_PCT

    @property
    def measure(self) -> Measure:
        """What decides: content where there is any to keep, else fidelity."""
        return CONTENT if self.beats_table else FIDELITY

    def describe(self) -> str:
        """In a sentence, or in two."""
        if math.isnan(self.below_grey_pct):
            return "These photographs hold no colour, so nothing can be measured on them."
        noun = "photograph" if self.photos == 1 else "photographs"
        below = f"{_percent(self.below_grey_pct)} grey"
        if not math.isnan(self.below_table_pct):
            # Of what is said: "above" where it is not below.
            sign = 1 if self.below_table_pct >= 0 else -1
            ends = sorted((sign * self.below_table_low, sign * self.below_table_high))
            interval = f" (95 % interval {format_interval(*ends, digits=1)})"
            interval = "" if math.isnan(self.below_table_low) else interval
            below += f", {_percent(self.below_table_pct)} a lightness table{interval}"
        chroma = f"its colours have {100 * self.chroma_share:.0f} % of the truth's chroma"
        said = f"best.pt on {self.photos} {noun}: L1 {below}; {chroma}."
        if math.isnan(self.self_fidelity):
            return said
        get, own = "gets" if self.photos == 1 else "get", FIDELITY.show(self.self_fidelity)
        return f"{said} The same {noun} mirrored {get} {own} of those colours from it."

    @property
    def weakness(self) -> Weakness | None:
        """Why it is no yardstick of content; None where it is one, and on photographs without colour."""
        if math.isnan(self.below_grey_pct) or self.beats_table:
            return None
        if self.chroma_share < _HARDLY_ANY:
            return HARDLY_PAINTS
        if self.photos == 1:
            return NOT_TOLD  # whatever its colours are: one picture tells vivid from wrong as little
        if not self.beats_grey:
            return VIVID
        return NOT_TOLD if math.isnan(self.below_table_low) else TINT

    @property
    def caution(self) -> str:
        """What its weakness means for all that follows, in a sentence; empty where best.pt is strong."""
        return self.weakness.caution if self.weakness else ""

    def sentences(self) -> list[str]:
        """What `describe` says, and `caution` if there is one."""
        return list(filter(None, (self.describe(), self.caution)))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready primitives."""
        return without_nan(asdict(self))

    @staticmethod
    def of(values: Mapping[str, Any]) -> Strength:
        """Rebuild it from `to_dict`'s answer."""
        return Strength(**with_nan(values))


def _percent(below: float) -> str:
    return f"{abs(below):.1f} % {'below' if below >= 0 else 'above'}"


class Scale(NamedTuple):
    """What a mean L1 (ab/128) is read by: how near to the truth, or to best.pt's answers where `to_best`.

    Attributes:
        grey_l1, best_l1: of the grey answer and of best.pt; 0 is best.pt's to its own answers.
    """

    grey_l1: float
    best_l1: float
    to_best: bool = False

    @property
    def l1_name(self) -> str:
        """What the L1 is, in words."""
        return "L1 to best.pt's answers" if self.to_best else "validation L1"

    @property
    def measure(self) -> Measure:
        """What is kept: G of what best.pt gains over grey, or F of its own colours."""
        return FIDELITY if self.to_best else RETAINED

    def kept(self, l1: float) -> float:
        """How much of it; NaN where best.pt is no better than grey."""
        gained = self.grey_l1 - self.best_l1
        return (self.grey_l1 - l1) / gained if gained > 0 else math.nan


@dataclass(frozen=True)
class Score:
    """What a model's answers are worth, against best.pt and against answers that see no picture.

    Attributes:
        l1: mean L1 (ab/128).
        l1_delta_pct: L1 above best.pt's, in percent of it; negative is better than best.pt. NaN where best.pt's is 0.
        retained_colour: G, of the gain over grey; NaN where best.pt has none.
        content_colour: C, of the gain over a lightness table; NaN where best.pt has none, or without a table.
        fidelity: F, of best.pt's own colours; NaN where it answers grey.
        *_low, *_high: their 95 % bootstrap intervals over photographs; NaN for fewer than two.
        measure: the name of the one that decides.
    """

    l1: float
    l1_delta_pct: float
    l1_delta_low: float
    l1_delta_high: float
    retained_colour: float
    retained_low: float
    retained_high: float
    content_colour: float
    content_low: float
    content_high: float
    fidelity: float
    fidelity_low: float
    fidelity_high: float
    measure: str

    @property
    def kept(self) -> float:
        """By the measure that decides."""
        return float(getattr(self, self.measure))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of what is kept; NaN twice where there is none."""
        measure = MEASURES[self.measure]
        return getattr(self, measure.low), getattr(self, measure.high)

    @property
    def loss(self) -> float:
        """What should be small: 1 - what is kept, or where that is not known the share of L1 above best.pt's."""
        return self.l1_delta_pct / 100.0 if math.isnan(self.kept) else 1.0 - self.kept

    @property
    def likely_loss(self) -> float:
        """The loss that is not exceeded elsewhere with 80 % confidence; NaN where nothing can be said for sure."""
        figures = self.likely_figures()
        return figures["l1_delta_pct"] / 100.0 if math.isnan(self.kept) else 1.0 - figures[self.measure]

    def likely_figures(self, margin: float = MARGIN) -> dict[str, float]:
        """The figures that goals are held against: what is chosen by them keeps that elsewhere with 80 % confidence.

        Intervals are taken for those of normal distributions. A single photograph has none, and its figures stand as
        they are; NaN where there are more and yet no interval: nothing can be said for sure.

        Args:
            margin: standard errors that they are worse than what was measured.
        """
        ends = {each.name: (each.low, each.high, -1.0) for each in MEASURES.values()}
        ends |= {"l1_delta_pct": ("l1_delta_low", "l1_delta_high", 1.0)}
        is_single = math.isnan(self.l1_delta_low)
        errors = {
            name: 0.0 if is_single else (getattr(self, high) - getattr(self, low)) / (2 * _NINETEEN_IN_TWENTY)
            for name, (low, high, _) in ends.items()
        }
        return {name: getattr(self, name) + sign * margin * errors[name] for name, (_, _, sign) in ends.items()}

    def by(self, measure: str) -> Score:
        """The same by another measure, given by its name."""
        return replace(self, measure=measure)

    def describe(self) -> str:
        """What is kept in a few words, else the L1."""
        if math.isnan(self.kept):
            return f"{self.l1_delta_pct:+.2f} % L1"
        return MEASURES[self.measure].show(self.kept)

    def describe_interval(self) -> str:
        """The interval as a remark behind a figure; empty where there is none."""
        low, high = self.interval
        return "" if math.isnan(low) else f" (95 % interval {format_interval(low, high)})"

    def to_dict(self) -> dict[str, Any]:
        """The score as JSON-ready primitives."""
        return without_nan(asdict(self))

    @staticmethod
    def of(values: Mapping[str, Any]) -> Score:
        """Rebuild a score from `to_dict`'s answer."""
        return Score(**with_nan(values))


@dataclass(frozen=True)
class Scores:
    """What one model that was chosen is worth, on the photographs that chose it and on others.

    Attributes:
        chosen_by: on the photographs that chose: the winner of many is partly the luckiest there.
        confirmed: on others, by the measure that chose; None where there are none.
    """

    chosen_by: Score
    confirmed: Score | None = None

    @property
    def reported(self) -> Score:
        """What is to be believed."""
        return self.confirmed or self.chosen_by

    def describe(self, *, intervals: bool = False) -> str:
        """What is kept on either, in a few words."""

        def show(score: Score) -> str:
            return score.describe() + (score.describe_interval() if intervals else "")

        if self.confirmed is None:
            return show(self.chosen_by)
        return f"{show(self.chosen_by)} on the photographs that chose, {show(self.confirmed)} on others"

    def to_dict(self) -> dict[str, Any]:
        """Both as JSON-ready primitives."""
        return {
            "chosen_by": self.chosen_by.to_dict(),
            "confirmed": self.confirmed.to_dict() if self.confirmed else None,
        }

    @staticmethod
    def of(values: Mapping[str, Any]) -> Scores:
        """Rebuild them from `to_dict`'s answer, or from what holds it."""
        confirmed = values["confirmed"]
        return Scores(Score.of(values["chosen_by"]), Score.of(confirmed) if confirmed else None)


@dataclass(frozen=True)
class Reference:
    """What models are held against, on each photograph.

    Attributes:
        grey_l1, table_l1, best_l1: L1 (ab/128) to the truth, of the grey answer, of a lightness table (NaN: there is
            none) and of best.pt.
        best_to_grey: L1 (ab/128) of the grey answer to best.pt's.
        best_chroma, true_chroma: mean CIE chroma of best.pt's answer, and of the photograph.
    """

    grey_l1: Floats
    table_l1: Floats
    best_l1: Floats
    best_to_grey: Floats
    best_chroma: Floats
    true_chroma: Floats

    @staticmethod
    def of(photos: Sequence[Mapping[str, float]]) -> Reference:
        """Made of the figures of each photograph, by name."""
        return Reference(**{each.name: np.array([known[each.name] for known in photos]) for each in fields(Reference)})

    @cached_property
    def strength(self) -> Strength:
        """How strong best.pt is."""
        grey, table, best = (float(l1.mean()) for l1 in (self.grey_l1, self.table_l1, self.best_l1))
        has_colour = grey > _NO_COLOUR
        nothing = np.zeros_like(self.best_l1)
        # With 0 for the best, the share "kept" is the part of the table's L1 that best.pt is below it.
        low, high = kept_interval(self.table_l1, self.best_l1, nothing) if has_colour else (math.nan, math.nan)
        return Strength(
            photos=len(self.grey_l1),
            below_grey_pct=100.0 * (1.0 - best / grey) if has_colour else math.nan,
            below_table_pct=100.0 * (1.0 - best / table) if has_colour else math.nan,
            below_table_low=100.0 * low,
            below_table_high=100.0 * high,
            chroma_share=float(self.best_chroma.mean() / self.true_chroma.mean()) if has_colour else math.nan,
        )

    @property
    def best(self) -> Score:
        """best.pt's own score: 1 by all measures, NaN by those that nothing can be measured by."""
        return self.score(self.best_l1, np.zeros_like(self.best_l1))

    def part(self, photos: slice | NDArray[np.int64]) -> Reference:
        """The same on some of the photographs, given by their places."""
        return Reference(**{each.name: getattr(self, each.name)[photos] for each in fields(self)})

    def score(self, l1: Floats, to_best: Floats) -> Score:
        """A model by its L1 (ab/128) to the truth and to best.pt's answer, of each photograph.

        Photographs without colour give no share of anything.
        """
        nothing = np.zeros_like(self.best_l1)
        best, own = float(self.best_l1.mean()), float(l1.mean())
        # As in `strength`: the part of best.pt's own L1 that the model is below it.
        low, high = kept_interval(self.best_l1, l1, nothing)
        shares: dict[str, float] = {}
        against = {
            RETAINED: (self.grey_l1, l1, self.best_l1),
            CONTENT: (self.table_l1, l1, self.best_l1),
            FIDELITY: (self.best_to_grey, to_best, nothing),
        }
        for measure, arrays in against.items():
            known = not math.isnan(self.strength.below_grey_pct)
            shares[measure.name] = kept_share(*arrays) if known else math.nan
            shares[measure.low], shares[measure.high] = kept_interval(*arrays) if known else (math.nan, math.nan)
        return Score(
            l1=own,
            l1_delta_pct=100.0 * (own / best - 1.0) if best else math.nan,
            l1_delta_low=-100.0 * high,
            l1_delta_high=-100.0 * low,
            measure=self.strength.measure.name,
            **shares,
        )
