"""Accelerators and clusters: what a machine offers, from the catalogue or as given.

Every figure of the catalogue (``catalog/accelerators.json``) carries its source.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsplan.errors import InputError, choice, require_positive
from dsplan.units import MIB

KINDS = ("cuda", "rocm", "hpu", "cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One device: memory as the driver reports it, and what the libraries on it allocate.

    Attributes:
        name: catalogue key, lower case (``h200``, ``a100-40gb``).
        label: the vendor's name.
        kind: ``cuda``, ``rocm``, ``hpu`` or ``cpu``.
        memory_bytes: total memory that the driver reports for a fresh device; None for ``cpu``,
            whose memory is the host's.
        driver_reserve_bytes: the part of it that a process cannot have.
        bf16: whether the matrix units compute in bfloat16.
        compute_capability: CUDA's ``"9.0"``; None elsewhere.
        multiprocessors: streaming multiprocessors; 0: not known, or not CUDA's.
        cublas_workspace_bytes: workspace that torch takes from the caching allocator for each
            (thread, stream) that runs a matrix product (aten/src/ATen/cuda/CublasHandlePool.cpp).
        context_bytes: device memory outside the allocator once a single rank has run a step.
        communication_bytes: what several ranks add to it (NCCL's buffers).
        sources: where each figure comes from.
    """

    name: str
    label: str
    kind: str = "cuda"
    memory_bytes: int | None
    driver_reserve_bytes: int = 0
    bf16: bool = True
    compute_capability: str | None = None
    multiprocessors: int = 0
    cublas_workspace_bytes: int = 0
    context_bytes: int = 0
    communication_bytes: int = 0
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        choice("accelerator kind", self.kind, KINDS)
        if self.memory_bytes is not None and self.memory_bytes < 256 * MIB:
            raise InputError(f"device memory: {self.memory_bytes} bytes is not allowed; at least 256 MiB")

    @property
    def usable_bytes(self) -> int | None:
        """What a process can have of the device; None where that is the host's memory."""
        return None if self.memory_bytes is None else self.memory_bytes - self.driver_reserve_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """A folder's file system: which one it is, and what is free on it (bytes)."""

    folder: str
    file_system: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLimits:
    """What a node lets processes have beside its memory, where that was asked (:func:`dsplan.detect.host_limits`).

    Attributes:
        locked_bytes: what a process may lock in memory with mlock(2) (``ulimit -l``); None: as much as it likes.
        shared_bytes: the size of /dev/shm; None: there is none, or it could not be asked.
        locks_pinned_memory: DeepSpeed locks pinned memory with mlock (DS_PIN_MEMORY_BACKEND=native), not with CUDA.
        drives: of the folders that are swapped to.
        mmap_threshold_bytes: from which size on malloc maps memory apart, as MALLOC_MMAP_THRESHOLD_ fixes it; None: it
            moves (:mod:`dsplan.verdict.heap`).
    """

    locked_bytes: int | None = None
    shared_bytes: int | None = None
    locks_pinned_memory: bool = False
    drives: tuple[Drive, ...] = ()
    mmap_threshold_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Identical nodes with identical devices; one rank per device.

    ``accelerator`` is None when no device was named: every plan then says which catalogued cards
    it fits. ``host_memory_bytes`` is per node, None when unknown. ``allocator`` is the PYTORCH_CUDA_ALLOC_CONF of
    the ranks. ``limits`` are those of this machine where it is the node, None when they were not asked.
    """

    accelerator: Accelerator | None = None
    gpus_per_node: int = 1
    num_nodes: int = 1
    host_memory_bytes: int | None = None
    allocator: str = ""
    limits: HostLimits | None = None

    def __post_init__(self) -> None:
        require_positive("gpus", self.gpus_per_node)
        require_positive("nodes", self.num_nodes)

    @property
    def world_size(self) -> int:
        """N: the number of data-parallel ranks."""
        return self.gpus_per_node * self.num_nodes
