"""The ZeRO section of a DeepSpeed configuration: DeepSpeed's own keys and defaults, nothing computed.

Source of names and defaults: DeepSpeed 0.19.8 ``runtime/zero/config.py`` (DeepSpeedZeroConfig) and
``runtime/zero/offload_config.py``. Bucket sizes and thresholds are counted in **elements**.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsplan.errors import InputError, choice

OFFLOAD_DEVICES = ("none", "cpu", "nvme")


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadOptimizer:
    """``zero_optimization.offload_optimizer``: where the optimizer states and its update live."""

    device: str = "none"
    nvme_path: str | None = None
    pin_memory: bool = True
    buffer_count: int = 4
    ratio: float = 1.0

    def __post_init__(self) -> None:
        choice("offload_optimizer.device", self.device, OFFLOAD_DEVICES)
        if not 0.0 <= self.ratio <= 1.0:
            raise InputError(f"offload_optimizer.ratio: {self.ratio} is not allowed; it must be between 0 and 1")
        if self.buffer_count < 1:
            raise InputError(f"offload_optimizer.buffer_count: {self.buffer_count} is not allowed; at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadParam:
    """``zero_optimization.offload_param``: where stage 3 keeps the partitioned parameters."""

    device: str = "none"
    nvme_path: str | None = None
    pin_memory: bool = True
    buffer_count: int = 5
    buffer_size: int = 100_000_000
    max_in_cpu: int = 1_000_000_000

    def __post_init__(self) -> None:
        choice("offload_param.device", self.device, OFFLOAD_DEVICES)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafModule:
    """``zero_optimization.leaf_module``: modules that stage 3 fetches whole, hooking nothing in them.

    Attributes:
        classes: their classes, bare or with their modules; None: DeepSpeed's own list, mixtures of experts
            (``runtime/zero/leaf_module_config.py``, DEFAULT_LEAF_MODULE_CLASSES).
        names, name_suffixes: their names in the model, and how those may end.
    """

    classes: tuple[str, ...] | None = None
    names: tuple[str, ...] = ()
    name_suffixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroConfig:
    """``zero_optimization`` as DeepSpeed reads it; see DeepSpeed's documentation of each key.

    ``overlap_comm`` is None until resolved: DeepSpeed then takes True at stage 3 and False below
    (``DeepSpeedZeroConfig.overlap_comm_valid``).
    """

    stage: int = 0
    contiguous_gradients: bool = True
    reduce_scatter: bool = True
    reduce_bucket_size: int = 500_000_000
    allgather_partitions: bool = True
    allgather_bucket_size: int = 500_000_000
    overlap_comm: bool | None = None
    round_robin_gradients: bool = False
    sub_group_size: int = 1_000_000_000
    stage3_prefetch_bucket_size: int = 50_000_000
    stage3_param_persistence_threshold: int = 100_000
    stage3_model_persistence_threshold: int = 2**63 - 1
    stage3_max_live_parameters: int = 1_000_000_000
    stage3_max_reuse_distance: int = 1_000_000_000
    memory_efficient_linear: bool = True
    zero_hpz_partition_size: int = 1
    leaf_module: LeafModule = LeafModule()
    offload_optimizer: OffloadOptimizer = OffloadOptimizer()
    offload_param: OffloadParam = OffloadParam()

    def __post_init__(self) -> None:
        if self.stage not in (0, 1, 2, 3):
            raise InputError(f"zero_optimization.stage: {self.stage!r} is not allowed; it must be 0, 1, 2 or 3")
        if self.reduce_bucket_size < 1:
            raise InputError(f"reduce_bucket_size: {self.reduce_bucket_size} is not allowed; at least 1 element")
        for key in (
            "allgather_bucket_size",
            "sub_group_size",
            "stage3_prefetch_bucket_size",
            "stage3_param_persistence_threshold",
            "stage3_max_live_parameters",
            "stage3_max_reuse_distance",
        ):
            if getattr(self, key) < 0:
                raise InputError(f"{key}: {getattr(self, key)} is not allowed; it must not be negative")
        if self.offload_optimizer.device != "none" and self.stage == 0:
            raise InputError("offload_optimizer: needs ZeRO stage 1, 2 or 3; stage 0 ignores it")
        if self.offload_param.device != "none" and self.stage != 3:
            raise InputError(f"offload_param: needs ZeRO stage 3; stage {self.stage} ignores it")
        if self.offload_optimizer.ratio < 1.0 and self.stage != 3:
            raise InputError("offload_optimizer.ratio: below 1 it needs ZeRO stage 3")

    @property
    def overlaps_communication(self) -> bool:
        """``overlap_comm`` as DeepSpeed resolves it."""
        return self.stage == 3 if self.overlap_comm is None else self.overlap_comm

    @property
    def builds_on_device(self) -> bool:
        """Whether the model is built under ``zero.Init``, its partitions on the device; else whole, on the host."""
        return self.stage == 3

    @property
    def offloads_optimizer(self) -> bool:
        return self.offload_optimizer.device != "none"

    @property
    def offloads_parameters(self) -> bool:
        return self.offload_param.device != "none"

    @property
    def offloads(self) -> bool:
        """Either."""
        return self.offloads_optimizer or self.offloads_parameters
