"""Bound: what a verdict asks for beyond what the replay needs, before it says that a run fits.

Where everything happens on one stream, a run repeats itself to the byte, and the trace lacks only what no formula
counts: DeepSpeed's bookkeeping tensors and where they lie. With several streams a freed block comes back when the
other stream has passed it, which depends on time. docs/verdict.md has the measurements.
"""

from __future__ import annotations

from dsplan.units import MIB

#: One stream: three segments of 20 MiB, in which torch serves requests of 1 to 10 MiB. Of the ladders that were seen
#: while this was written, none that was predicted to live with less than this needed more than predicted.
ONE_STREAM_BYTES = 64 * MIB
#: Several: peaks of allocated memory differ from the trace by up to 141 MiB and 0.45 % there, and from run to run.
STREAMS_BYTES, STREAMS_SHARE = 128 * MIB, 0.005

#: Of what the replay expects where communication is late. Of 199 runs on H200 (``python -m tests.verdict.reserved``)
#: one reserved 7.7 % more, a mixture of experts, and one 4.2 %, of one rank, whose streams hold on to each other's
#: blocks for as long as they compute; most, nothing.
RESERVED_BOUND = 1.10


def margin(capacity_bytes: int, *, several_streams: bool) -> int:
    """What a run must leave of ``capacity_bytes`` to be called a fit, in bytes."""
    if not several_streams:
        return ONE_STREAM_BYTES
    return max(STREAMS_BYTES, round(STREAMS_SHARE * capacity_bytes))


def reserved_bound(reserved_bytes: int, late_bytes: int | None = None) -> int:
    """What the allocator can come to reserve, in bytes.

    Args:
        reserved_bytes: what is expected.
        late_bytes: the same where communication is late (dsplan/verdict/late.py); None: no more.
    """
    return round(RESERVED_BOUND * max(reserved_bytes, late_bytes or 0))
