"""What the options say of a dry run: for which device, of which rank, with which allocator."""

from __future__ import annotations

import os

from dsplan.activations import not_covered
from dsplan.allocator.settings import parse_settings
from dsplan.cli.flags import naming_flags
from dsplan.cli.verify_options import WORST, DryRunOptions, given_flags
from dsplan.engine import candidate_ranks, uncovered
from dsplan.errors import InputError
from dsplan.hardware import Accelerator
from dsplan.kernels import kernels_of
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.verify_device import FAKE, ChosenDevice, choose_device, dry_run_device, named_target
from dsplan.walk import worst_rank

AUTO = "auto"
_FLAG = "--alloc-conf"
#: Where torch reads its settings, in its own order (c10/cuda/CUDAAllocatorConfig.h).
_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def choose(dry: DryRunOptions, wanted: str) -> ChosenDevice:
    """The device for ``--device``; with an option that only a dry run has, ``auto`` is the dry run.

    Raises:
        InputError: such an option with another device, or an unknown ``--gpu``.
        NoDeviceError: see :func:`choose_device`.
    """
    reason = require_dry(dry, wanted)
    if reason is None:
        return choose_device(wanted)
    return dry_run_device(target_of(dry), reason)


def require_dry(dry: DryRunOptions, wanted: str) -> str | None:
    """Why it has to be a dry run; None where no option says so.

    Raises:
        InputError: ``wanted`` is a device that takes real steps.
    """
    flags = given_flags(dry)
    if not flags:
        return None
    if wanted not in (AUTO, FAKE):
        raise InputError(
            f"{flags[0]} and --device {wanted} contradict each other: only a dry run has {flags[0]}; "
            f"leave it out, or use --device {FAKE}"
        )
    return "asked for" if wanted == FAKE else f"{flags[0]} asks for one"


def target_of(dry: DryRunOptions) -> Accelerator | None:
    """What ``--gpu`` names; None without it."""
    with naming_flags():
        return None if dry.gpu is None else named_target(dry.gpu)


def dry_rank(text: str | None, model: ModelShape, plan: Plan, target: Accelerator | None, world_size: int) -> int:
    """The rank that ``--rank`` names: a number, or the worst by the formulas.

    Raises:
        InputError: neither a number of a rank nor ``worst``, or a combination that the formulas do not model.
    """
    number = rank_number(text, world_size)
    if number is not None:
        return number
    if (
        not_covered(model, plan.workload) or uncovered(model, plan)
    ) is not None:  # the first of those that can be the worst: it has the last layers
        return candidate_ranks(model, plan, world_size)[0]
    return worst_rank(model, plan, world_size, kernels_of(target))


def rank_number(text: str | None, world_size: int) -> int | None:
    """The number in ``--rank``; None for the worst rank.

    Raises:
        InputError: neither ``worst`` nor a number from 0 to the last rank's.
    """
    if text is None or text.strip().casefold() == WORST:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise InputError(f"--rank: {text!r} is not allowed; it must be the number of a rank, or {WORST}")
    if int(text) >= world_size:
        allowed = "0, the only rank" if world_size == 1 else f"0 to {world_size - 1}"
        raise InputError(f"--rank: {text} is not allowed; of {world_size} ranks it must be {allowed}")
    return int(text)


def allocator_text(given: str | None, device: ChosenDevice) -> str:
    """The settings that torch's allocator is replayed with: as given, else the environment's; checked.

    Raises:
        InputError: an option that torch does not know or that is not replayed, or a device without that allocator.
    """
    if device.computes_on_cpu:
        if given:
            raise InputError(f"{_FLAG}: a CPU has no caching allocator to set; name another device with --gpu")
        return ""
    where, text = _FLAG, given
    if text is None:
        where = next((name for name in _VARIABLES if os.environ.get(name)), _VARIABLES[0])
        text = os.environ.get(where, "")
    parse_settings(text, where)
    return text
