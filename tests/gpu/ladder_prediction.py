"""Ladder prediction: with which micro batch the climb of a setting begins."""

from __future__ import annotations

from dataclasses import dataclass

from dsplan.catalogue import accelerator
from dsplan.kernels import kernels_of
from dsplan.ladder import largest_below, largest_that_fits
from dsplan.walk import walk
from tests.gpu.ladder_settings import Setting

GIB = 2**30
#: Resident memory of a process beside what its plan holds on the host, with room to spare.
PROCESS = 4 * GIB
#: Of the predicted peak: where the climb begins when the verdict could not be asked.
GUESS = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The largest micro batch that is called ``fits`` (None: it could not be asked), where to begin, host bytes."""

    called_fits: int | None
    first: int
    host_bytes: int
    error: str = ""


def predicted(setting: Setting) -> Prediction:
    """What is predicted of ``setting``: its verdicts are those of ``tests.ladder_report``."""
    kernels = kernels_of(accelerator("h200"))

    def peak(size: int) -> tuple[int, int]:
        case = setting.with_micro_batch(size)
        result = walk(case.model_shape(), case.plan(), case.gpus, kernels)
        return max(step.peak_bytes for step in result.steps), result.host_bytes

    case = setting.case
    whole = 0 if case.stage == 3 else 9 * case.model_shape().num_parameters  # fp32, a copy of it, and half of one
    host_bytes = case.gpus * (max(whole, peak(1)[1]) + whole // 2 + PROCESS)
    possible = largest_that_fits(lambda size: peak(size)[0] <= setting.cap_bytes)
    try:
        from dsplan.verdict.judge import FITS
        from tests.ladder_report import judged_rung

        called = largest_below(possible, lambda size: judged_rung(setting, size, setting.cap_bytes).verdict == FITS)
    except Exception as error:  # the climb goes on without
        guess = largest_that_fits(lambda size: peak(size)[0] * GUESS <= setting.cap_bytes)
        text = f"{type(error).__name__}: {error}"
        return Prediction(called_fits=None, first=max(guess - 1, 1), host_bytes=host_bytes, error=text)
    return Prediction(called_fits=called, first=max(called - 1, 1), host_bytes=host_bytes)
