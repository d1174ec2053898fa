"""The versions of torch and DeepSpeed that the dry run is tested with, said once.

The dry run relies on how both work inside (``patches``, ``backend``, ``importing``, ``accelerator``) and on what
their kernels allocate (``hidden``, ``dsplan.allocator``), so that with other versions its numbers may be wrong
without anything breaking.

What has been run: dry runs with torch 2.13.0 (CPU build) and DeepSpeed 0.19.4 and 0.19.8; CI runs both pairs and holds
them to one another to the byte (tests/oldest). The records that dry runs were compared with were made on H200 GPUs with
torch 2.11.0+cu130 and DeepSpeed 0.19.8 (the ``versions`` in tests/data/measured), whose allocator and kernels the dry
run replays: hence the range of torch, of whose ends each is tested in its own way only, and of whose middle, 2.12,
nothing has been.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from dsplan.errors import InputError

OLDEST_TORCH = (2, 11)
NEWEST_TORCH = (2, 13)
OLDEST_DEEPSPEED = (0, 19, 4)
NEWEST_DEEPSPEED = (0, 19, 8)

_UNKNOWN = "of an unknown version"


def tested() -> str:
    """The range, for people."""
    ends = (OLDEST_TORCH, NEWEST_TORCH, OLDEST_DEEPSPEED, NEWEST_DEEPSPEED)
    torch, newest_torch, deepspeed, newest_deepspeed = (".".join(map(str, end)) for end in ends)
    return f"torch {torch} to {newest_torch} and DeepSpeed {deepspeed} to {newest_deepspeed}"


def is_tested(torch: str, deepspeed: str) -> bool:
    """Whether two versions, as their packages spell them, are in the range; builds (``+cpu``) are alike."""
    release = re.match(r"(\d+)\.(\d+)", torch)
    if release is None or not OLDEST_TORCH <= (int(release[1]), int(release[2])) <= NEWEST_TORCH:
        return False
    patch = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", deepspeed.partition("+")[0])
    return patch is not None and OLDEST_DEEPSPEED <= tuple(map(int, patch.groups())) <= NEWEST_DEEPSPEED


def require_tested(*, force: bool) -> None:
    """Stop where torch or DeepSpeed, as installed, is outside the range, unless ``force``.

    Imports neither: with another version the import itself may be what breaks.

    Raises:
        InputError: it is; the message names both and what to do.
    """
    torch, deepspeed = _installed("torch"), _installed("deepspeed")
    if force or is_tested(torch, deepspeed):
        return
    raise InputError(
        f"the dry run is tested with {tested()}, and this machine has torch {torch} and DeepSpeed {deepspeed}: its "
        "numbers could be wrong, or it could break; install a tested pair, or make the dry run all the same with "
        "--force"
    )


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # on the path without having been installed
        return _UNKNOWN
