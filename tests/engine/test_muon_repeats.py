"""Repeats: what was met before is not walked again, and comes to the same."""

from __future__ import annotations

from dsplan.engine.muon_repeats import Repeats
from dsplan.engine.muon_update import Updates
from dsplan.ledger import Ledger
from dsplan.states import NEWTON_SCHULZ

from ..tapes import CPU, EXACT


def test_the_same_again_is_taken_as_it_was() -> None:
    ledger, repeats, walked = Ledger(EXACT), Repeats[str](), []

    def act() -> str:
        walked.append(ledger.level)
        ledger.temporary(NEWTON_SCHULZ, 50)
        ledger.alloc(NEWTON_SCHULZ, 7)
        return f"state {len(walked)}"

    assert repeats.take(ledger, "a", act) == "state 1"
    assert (ledger.level, ledger.peak) == (7, 50)
    ledger.moment = "again"
    assert repeats.take(ledger, "a", act) == "state 1"
    assert (ledger.level, ledger.peak, ledger.peak_moment) == (14, 57, "again")
    assert repeats.take(ledger, "b", act) == "state 2"  # another key
    assert walked == [0, 14]
    assert ledger.level == 21


def test_an_update_repeats_once_its_code_is_there() -> None:
    ledger, updates = Ledger(EXACT), Updates()
    assert not updates.repeat(ledger, [(4, 6)])
    updates.take(ledger, (4, 6), "bf16")
    assert updates.repeat(ledger, [(4, 6)])
    assert not updates.repeat(ledger, [(4, 6), (6, 4)])
    assert not updates.repeat(Ledger(EXACT, target=("", "", -1)), [(4, 6)])  # which tells each tensor
    assert updates.repeat(Ledger(CPU), [(6, 4)])  # nothing is compiled
