"""What is live at a peak adds up to it, in random configurations of everything that the formulas take."""

from __future__ import annotations

import pytest

from dsplan.engine import candidate_ranks
from dsplan.kernels import Kernels
from dsplan.ledger import DEVICE
from dsplan.walk import walk
from tests.oracle.grid import Case, cases

CASES = {case.name: case for case in cases(40, 7)}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_terms_of_the_steady_peak(case: Case) -> None:
    kernels = Kernels(whole_segments=False)
    rank = candidate_ranks(case.model, case.plan, case.world_size)[-1]
    last = walk(case.model, case.plan, case.world_size, kernels, rank=rank).steps[-1]
    target = (last.name, last.peak_phase, last.peak_bytes)
    terms = walk(case.model, case.plan, case.world_size, kernels, rank=rank, target=target).terms
    assert sum(term.size_bytes for term in terms if term.place == DEVICE) == last.peak_bytes
    assert [term for term in terms if term.size_bytes < 0] == []
