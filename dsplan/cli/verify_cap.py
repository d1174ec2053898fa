"""``verify --cap``: a run that died of memory is a result, told with what the plan had said of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dsplan.errors import EXIT_OUT_OF_MEMORY, RunError
from dsplan.plan import Plan

if TYPE_CHECKING:
    from dsplan.verification import Job


@contextmanager
def beside_the_plan(job: Job) -> Iterator[None]:
    """A run of ``job``: where it dies of memory under a cap, the error also says what the formulas say of that cap.

    Raises:
        RunError: as the run does, with a line more.
    """
    try:
        yield
    except RunError as error:
        if error.exit_code != EXIT_OUT_OF_MEMORY or job.memory_cap_bytes is None or not isinstance(job.against, Plan):
            raise
        from dsplan.verdict.cap import under_cap

        said = under_cap(
            job.model,
            job.against,
            job.world_size,
            job.device.accelerator,
            job.memory_cap_bytes,
            allocator=job.allocator,
        )
        raise RunError(f"{error}\n{said}", EXIT_OUT_OF_MEMORY) from error
