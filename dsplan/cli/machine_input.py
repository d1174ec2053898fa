"""The cluster that the options describe."""

from __future__ import annotations

import os
from dataclasses import replace

from dsplan import detect
from dsplan.catalogue import accelerator
from dsplan.cli.flags import naming_flags
from dsplan.cli.options import MachineOptions
from dsplan.errors import InputError, require_positive
from dsplan.hardware import Accelerator, Cluster
from dsplan.units import MIB, parse_size

#: Whose workspace and context a device has of which only the memory was given.
_TYPICAL = "a100-80gb"
#: GPUs of a node, or nodes, beyond which a number is a slip of the keyboard.
_MAX_COUNT = 100_000
#: Host memory below which a number is a slip: torch alone takes as much, and 512 is most likely meant in GB.
_LEAST_HOST_BYTES = 256 * MIB
#: Where torch reads its allocator's settings, in its own order (c10/cuda/CUDAAllocatorConfig.h).
_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def read_machine_options(options: MachineOptions) -> Cluster:
    """The cluster: of the named device, else of this machine's, else of none (``accelerator`` is None).

    The host memory of this machine is taken only with its own device: for another one it says nothing.

    Raises:
        InputError: an unknown device, a size that is not one, or a count below 1.
    """
    for flag, count in (("--gpus", options.gpus), ("--nodes", options.nodes)):
        if count is not None:
            require_positive(flag, count)
            if count > _MAX_COUNT:
                raise InputError(f"{flag}: {count} is not allowed; at most {_MAX_COUNT:,}")
    memory = None if options.device_memory is None else parse_size(options.device_memory, "--device-memory")
    host = None if options.host_memory is None else parse_size(options.host_memory, "--host-memory")
    if host is not None and host < _LEAST_HOST_BYTES:
        meant = f"; for gigabytes write {host}GB" if str(host) == str(options.host_memory).strip() else ""
        raise InputError(f"--host-memory: {host} bytes is not allowed; at least 256 MiB{meant}")
    with naming_flags():
        local = detect.local_accelerator() if options.gpu is None else None
        device = accelerator(options.gpu) if options.gpu is not None else local
        if memory is not None:
            device = _with_memory(device, memory)
    gpus = options.gpus
    if local is not None:
        host = host or detect.host_memory_bytes()
        gpus = gpus or detect.local_gpu_count()
    return Cluster(accelerator=device, gpus_per_node=gpus or 1, num_nodes=options.nodes or 1, host_memory_bytes=host)


def _with_memory(device: Accelerator | None, memory_bytes: int) -> Accelerator:
    if device is None:
        device = replace(accelerator(_TYPICAL), name="custom", label="device")
    return replace(
        device,
        memory_bytes=memory_bytes,
        driver_reserve_bytes=0,
        sources=(*device.sources, "memory_bytes: --device-memory"),
    )


def allocator_settings(text: str | None) -> str:
    """How torch's allocator is set: ``--alloc-conf``, else what the environment says, else nothing.

    Raises:
        InputError: an unknown option, a value out of torch's range, or one that is not replayed.
    """
    from dsplan.allocator.settings import parse_settings

    where = "--alloc-conf"
    if text is None:
        where = next((name for name in _VARIABLES if os.environ.get(name)), "")
        text = os.environ.get(where, "")
    if text:
        parse_settings(text, where)
    return text
