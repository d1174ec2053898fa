"""Which records were looked at before the formulas were done, and which were not."""

from __future__ import annotations

from functools import cache

from tests.gpu.cases import SETS

#: Sets of tests/gpu/cases.py whose errors were looked at before formulas and dry run were done. The first was used to
#: write the formulas; the second and third changed nothing, but their errors were printed; with the eighth it was found
#: out what Muon takes. The other sets are unseen.
SEEN_SETS = ("first", "second", "third", "eighth")
SEEN, UNSEEN = "seen", "unseen"


@cache
def set_of(name: str) -> str:
    """The set of cases that a record was made of.

    Raises:
        LookupError: it is in none, so that nobody could say whether it was seen.
    """
    for title, cases in SETS.items():
        if any(case.name == name for case in cases):
            return title
    raise LookupError(f"{name}: a record of no set in tests/gpu/cases.py, so nobody knows which half it belongs to")


def half_of(name: str) -> str:
    """:data:`SEEN` or :data:`UNSEEN`."""
    return half_of_set(set_of(name))


def half_of_set(title: str) -> str:
    """The half that a whole set belongs to."""
    return SEEN if title in SEEN_SETS else UNSEEN
