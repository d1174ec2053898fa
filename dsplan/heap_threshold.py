"""From which size on malloc maps memory apart, and so gives it back when it is freed: MALLOC_MMAP_THRESHOLD_.

glibc moves that size up to 32 MiB by itself; the variable fixes it (mallopt(3)). Stages 0 to 2 build and cast the model
on the host, and with a size that moves gigabytes of it may stay resident after it has left, or nothing
(:mod:`dsplan.verdict.heap`). Real runs on a device and the launch scripts that are emitted therefore fix it: a block of
this size and more costs a system call, and after the model is built nothing on the host is made anew in every step.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

VARIABLE = "MALLOC_MMAP_THRESHOLD_"
FIXED = 1 << 20
#: As a shell's line has it.
REMEDY = f"{VARIABLE}={FIXED}"


def fixed_threshold(environment: Mapping[str, str] | None = None) -> int | None:
    """What ``environment`` (this process's own) fixes it at, in bytes; None: it moves, or that is no number."""
    value = (os.environ if environment is None else environment).get(VARIABLE, "").strip()
    return int(value) if value.isascii() and value.isdigit() else None
