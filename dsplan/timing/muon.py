"""Seconds of Muon's update: each matrix is made orthogonal by five iterations of Newton and Schulz.

Legend: n and m the smaller and the larger side of a matrix, N ranks.

Source: DeepSpeed 0.19.8 runtime/zero/muon/original_muon.py (muon_update, zeropower_via_gram_newtonschulz,
``ns_method="gram"``, five steps, restart before the third), stage_1_and_2.py (get_flat_partition), stage3.py
(_muon_update_sub_group).
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

from dsplan.engine.muon_groups import uses_muon
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.timing.profile import Profile

#: Products of the Gram method: n by n with n by m, or n by m with its transpose; and n by n with n by n.
_WIDE, _SQUARE = 4, 14
#: Of a square matrix the plain method's: X with its transpose, that with itself, and with X, five times.
_PLAIN = 15
#: muon_update's lines over every element, by what they read and write: lerp, where, lerp_ and where; the scale.
_LINES = {"isfinite": 1, "add": 4, "scale": 1, "norm": 1, "cast": 2}
#: MuonWithAuxAdam.step reads and writes the parameter twice and reads the update once, where Adam has seven tensors.
TENSORS = 5


@lru_cache(maxsize=64)
def muon_elements(model: ModelShape) -> int:
    """Elements of the trained matrices that Muon updates."""
    return sum(one.numel for one in model.parameters if one.trained and uses_muon(one))


def orthogonalisation(profile: Profile, model: ModelShape, plan: Plan, ranks: int) -> float:
    """Seconds in which one rank makes its matrices orthogonal.

    At stage 0 that is all of them; else a share, of whole matrices: one that lies on two ranks is made by both, and at
    stage 3 they are dealt out in rounds of N.
    """
    shapes = _shapes(model)
    count = sum(times for _, times in shapes)
    if not count:
        return 0.0
    everything = sum(times * _of_one(profile, plan.workload.precision, shape) for shape, times in shapes)
    share = 1.0 if plan.zero.stage == 0 else -(-count // ranks) / count
    return share * everything


@lru_cache(maxsize=64)
def _shapes(model: ModelShape) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Shapes of the trained matrices that Muon updates, and how many of each there are."""
    return tuple(Counter(one.shape for one in model.parameters if one.trained and uses_muon(one)).items())


def _of_one(profile: Profile, dtype: str, shape: tuple[int, ...]) -> float:
    *batch, rows, columns = shape
    times = 1
    for size in batch:  # experts, each a matrix
        times *= size
    n, m = sorted((rows, columns))
    elements = times * rows * columns
    lines = sum(count * profile.elementwise(operator, dtype, elements) for operator, count in _LINES.items())
    square = profile.linear("fp16", n, n, n)[0]
    if n == m:
        return times * _PLAIN * square + lines
    wide = (profile.linear("fp16", n, m, n)[0] + profile.linear("fp16", n, n, m)[0]) / 2
    return times * (_WIDE * wide + _SQUARE * square) + lines
