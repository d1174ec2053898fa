"""Every strategy that dsplan emits, and random plans, for the tests of this folder."""

from __future__ import annotations

from itertools import product

from hypothesis import strategies as st

from dsplan.dsconfig.buckets import tuned
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import CPU_OPTIMIZERS, Plan
from dsplan.workload import OPTIMIZERS, Workload
from dsplan.zero import OffloadOptimizer, OffloadParam, ZeroConfig

MODEL = ModelShape(name="tiny", num_layers=4, hidden_size=1024, num_attention_heads=16)
CLUSTER = Cluster(gpus_per_node=4, num_nodes=2)

_CPU = OffloadOptimizer(device="cpu")
_NVME = OffloadOptimizer(device="nvme", nvme_path="/local_nvme")
ZEROS = {
    "zero0": ZeroConfig(stage=0),
    "zero1": ZeroConfig(stage=1),
    "zero1-offload": ZeroConfig(stage=1, offload_optimizer=_CPU),
    "zero2": ZeroConfig(stage=2),
    "zero2-offload": ZeroConfig(stage=2, offload_optimizer=_CPU),
    "zero3": ZeroConfig(stage=3),
    "zero3-offload": ZeroConfig(stage=3, offload_optimizer=_CPU),
    "zero3-offload-param": ZeroConfig(stage=3, offload_optimizer=_CPU, offload_param=OffloadParam(device="cpu")),
    "zero3-half": ZeroConfig(stage=3, offload_optimizer=OffloadOptimizer(device="cpu", ratio=0.5)),
    "zero3-nvme": ZeroConfig(
        stage=3, offload_optimizer=_NVME, offload_param=OffloadParam(device="nvme", nvme_path="/local_nvme")
    ),
}


def _planned(zero: ZeroConfig, optimizer: str) -> bool:
    """Whether DeepSpeed runs the two and the formulas have them: Muon's are of the device and of the whole CPU."""
    if zero.offloads_optimizer and optimizer not in CPU_OPTIMIZERS:
        return False
    on_drive = "nvme" in (zero.offload_optimizer.device, zero.offload_param.device)
    return optimizer != "muon" or not (on_drive or zero.offload_optimizer.ratio < 1)


def every_strategy() -> list[Plan]:
    """Each ZeRO section x precision x optimizer x checkpointing that has formulas, with tuned buckets."""
    plans = []
    for (name, zero), precision, optimizer, checkpointing in product(
        ZEROS.items(), ("fp32", "fp16", "bf16"), OPTIMIZERS, ("none", "deepspeed")
    ):
        if not _planned(zero, optimizer):
            continue
        workload = Workload(
            micro_batch_size=2,
            gradient_accumulation_steps=3,
            precision=precision,
            optimizer=optimizer,
            activation_checkpointing=checkpointing,
        )
        plan_name = f"{name}-{precision}-{optimizer}-{checkpointing}"
        plans.append(Plan(name=plan_name, zero=tuned(zero, MODEL), workload=workload))
    return plans


_elements = st.integers(1, 2**40)


def _offload_optimizers(stage: int) -> st.SearchStrategy[OffloadOptimizer]:
    if stage == 0:
        return st.just(OffloadOptimizer())
    return st.builds(
        OffloadOptimizer,
        device=st.sampled_from(["none", "cpu", "nvme"]),
        nvme_path=st.just("/scratch/nvme"),
        pin_memory=st.booleans(),
        buffer_count=st.integers(1, 9),
        ratio=st.floats(0, 1) if stage == 3 else st.just(1.0),
    )


def _offload_params(stage: int) -> st.SearchStrategy[OffloadParam]:
    if stage != 3:
        return st.just(OffloadParam())
    return st.builds(
        OffloadParam,
        device=st.sampled_from(["none", "cpu", "nvme"]),
        nvme_path=st.just("/scratch/nvme"),
        pin_memory=st.booleans(),
        buffer_count=st.integers(1, 9),
        buffer_size=_elements,
        max_in_cpu=_elements,
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan that the types allow and that a file can express (``torch`` checkpointing is not in the file)."""
    stage = draw(st.integers(0, 3))
    zero = ZeroConfig(
        stage=stage,
        contiguous_gradients=draw(st.booleans()),
        reduce_scatter=draw(st.booleans()),
        reduce_bucket_size=draw(_elements),
        allgather_partitions=draw(st.booleans()),
        allgather_bucket_size=2 * draw(_elements),  # DeepSpeed refuses an odd one
        overlap_comm=draw(st.sampled_from([None, True, False])),
        round_robin_gradients=draw(st.booleans()),
        sub_group_size=draw(_elements),
        stage3_prefetch_bucket_size=draw(_elements),
        stage3_param_persistence_threshold=draw(_elements),
        stage3_model_persistence_threshold=draw(_elements),
        stage3_max_live_parameters=draw(_elements),
        stage3_max_reuse_distance=draw(_elements),
        memory_efficient_linear=stage == 3 or draw(st.booleans()),
        offload_optimizer=draw(_offload_optimizers(stage)),
        offload_param=draw(_offload_params(stage)),
    )
    optimizer = draw(st.sampled_from([name for name in OPTIMIZERS if _planned(zero, name)]))
    return Plan(
        name="random",
        zero=zero,
        workload=Workload(
            micro_batch_size=draw(st.integers(1, 64)),
            sequence_length=draw(st.integers(1, 2**20)),
            gradient_accumulation_steps=draw(st.integers(1, 64)),
            precision=draw(st.sampled_from(["fp32", "fp16", "bf16"])),
            optimizer=optimizer,
            activation_checkpointing=draw(st.sampled_from(["none", "deepspeed"])),
        ),
        gradient_clipping=draw(st.floats(0, 10)),
        torch_adam=optimizer in ("adam", "adamw") and draw(st.booleans()),
    )
