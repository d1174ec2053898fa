"""The environment of the children: the user's own, less what would change a run behind the user's back."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from dsplan.heap_threshold import FIXED, VARIABLE
from dsplan.pythonpath import pythonpath
from runner.spec import RunSpec

SHARED_DEVICES = "DSPLAN_SHARED_DEVICES"  # how many there are; see runner.sharing
VISIBLE_DEVICES = "DSPLAN_VISIBLE_DEVICES"  # runner.child puts its value back into CUDA_VISIBLE_DEVICES

# Left by a surrounding torchrun, MPI or DeepSpeed job: this run is a job of its own, and DeepSpeed's CPU
# accelerator takes LOCAL_SIZE for the number of its devices. PYTHONWARNINGS=error breaks DeepSpeed's imports.
_NOT_OURS = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "CROSS_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE",
    "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "CROSS_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTHONWARNINGS",
    VISIBLE_DEVICES, SHARED_DEVICES,
)  # fmt: skip
_ARCHITECTURE = re.compile(r"(\d+\.\d+)[a-z]*(\+PTX)?", re.IGNORECASE)


def child_environment(spec: RunSpec, base: Mapping[str, str], *, cores: int | None = None) -> dict[str, str]:
    """The environment in which DeepSpeed's launcher and the ranks of ``spec`` run.

    Args:
        spec: the run; its device and its number of ranks matter here.
        base: the environment to start from, which is not changed.
        cores: the cores the ranks share; by default those this process may use.
    """
    env = {
        name: value for name, value in base.items() if name not in _NOT_OURS and not name.startswith("TORCHELASTIC_")
    }
    # ninja, which compiles DeepSpeed's operators, lies beside python also where no venv is activated.
    env["PATH"] = os.pathsep.join(filter(None, [str(Path(sys.executable).parent), env.get("PATH", os.defpath)]))
    env["PYTHONPATH"] = pythonpath(("runner", "dsplan", "mingpt"), env.get("PYTHONPATH", ""))
    env["PYTHONUNBUFFERED"] = "1"
    env["TOKENIZERS_PARALLELISM"] = "false"
    # A dry run puts its own accelerator in the place of this one, before DeepSpeed uses it.
    env["DS_ACCELERATOR"] = "cpu" if spec.device == "fake" else spec.device
    if spec.rank is not None:
        env.update(RANK=str(spec.rank), LOCAL_RANK="0", WORLD_SIZE=str(spec.gpus), MASTER_ADDR="127.0.0.1")
        env["MASTER_PORT"] = "0"  # nobody listens
    env.setdefault("OMP_NUM_THREADS", str(max(1, (cores or _cores()) // len(spec.ranks))))
    if spec.device in ("cuda", "hpu"):  # on a CPU every activation would be mapped apart, step after step
        env.setdefault(VARIABLE, str(FIXED))
    if spec.late_release:
        # Works are then not handed to the watchdog (ProcessGroupNCCL.cpp, workEnqueue), which alone gives back what
        # they hold before they are waited for.
        env["TORCH_NCCL_BLOCKING_WAIT"] = "1"
    _choose_devices(spec.device, env)
    if spec.devices is not None:
        env[SHARED_DEVICES] = str(spec.devices)
    architectures = cuda_architectures(env.pop("TORCH_CUDA_ARCH_LIST", ""))
    if architectures:
        env["TORCH_CUDA_ARCH_LIST"] = architectures
    return env


def cuda_architectures(value: str) -> str:
    """``value`` of TORCH_CUDA_ARCH_LIST as DeepSpeed can read it; empty when nothing of it is a number.

    torch takes ``9.0a`` and ``Hopper``; DeepSpeed's op builder turns each part of an entry into an int and
    dies of both. The suffix only switches on instructions that no DeepSpeed operator uses.
    """
    ptx: dict[str, str] = {}
    for entry in re.split(r"[;,\s]+", value):
        match = _ARCHITECTURE.fullmatch(entry)
        if match:
            number = match.group(1)
            ptx[number] = ptx.get(number) or (match.group(2) or "").upper()
    return ";".join(number + suffix for number, suffix in ptx.items())


def _choose_devices(device: str, env: dict[str, str]) -> None:
    # DeepSpeed's launcher ignores CUDA_VISIBLE_DEVICES and sets its own, 0 to N-1, for every accelerator: it would
    # show the GPUs to a CPU run, and on a shared machine it would take GPUs that the user did not choose.
    chosen = env.pop("CUDA_VISIBLE_DEVICES", None)
    if device in ("cpu", "fake"):
        env[VISIBLE_DEVICES] = env["CUDA_VISIBLE_DEVICES"] = ""
    elif chosen is not None:
        env[VISIBLE_DEVICES] = chosen


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
