"""Choosing one of many candidates without fooling oneself: what chose is never what is reported.

The best of many noisy candidates is partly the luckiest. So the photographs are two parts: one says who qualifies, and
the other, which nothing was chosen by, confirms it and gives the figure that is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile


@dataclass(frozen=True)
class Candidate:
    """What may be chosen.

    Attributes:
        name: of it.
        merit: what there is to gain by it; the larger the better.
        choosing: what it keeps on the photographs that choose.
        likely: what further photographs keep with odds of 4 to 1, by those that confirm.
    """

    name: str
    merit: float
    choosing: float
    likely: float


def choose_confirmed(candidates: Sequence[Candidate], bound: float) -> str | None:
    """The candidate of most merit that both parts of the photographs say keeps `bound`; None where there is none.

    Those that keep it where they are chosen are tried on the other part from the least merit to the most, and the first
    that fails there ends it: of hypotheses in a sequence that is fixed beforehand each is tested at the full level.

    Source: Maurer, Hothorn and Lehmacher, "Multiple comparisons in drug clinical trials and preclinical assays:
        a-priori ordered hypotheses", Biometrie in der chemisch-pharmazeutischen Industrie 6, 1995.
    """
    qualified = sorted((each for each in candidates if each.choosing >= bound), key=lambda each: each.merit)
    confirmed = list(takewhile(lambda each: each.likely >= bound, qualified))
    return confirmed[-1].name if confirmed else None
