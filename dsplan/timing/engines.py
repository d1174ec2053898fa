"""What each of DeepSpeed's engines moves, copies and updates in a step, in seconds.

Legend: Ψ trained parameters, N ranks, e bytes of a parameter in the precision that is computed in; what is frozen is
gathered at stage 3 and takes no other part. Read from DeepSpeed 0.19.8:
``runtime/engine.py``, ``runtime/fp16/fused_optimizer.py``, ``stage_1_and_2.py`` and ``stage3.py`` of ``runtime/zero``.

- Stage 0 all-reduces Ψ at the accumulation boundary, through flat copies.
- Stages 1 and 2 all-reduce every bucket, although each rank keeps only its part (``average_tensor`` with
  ``use_multi_rank_bucket_allreduce``, the default), stage 2 after every micro batch, stage 1 at the boundary; the
  updated parameters are all-gathered.
- Stage 3 all-gathers Ψ before the forward and again before the backward pass, but for what it keeps in between
  (:mod:`dsplan.timing.released`), and reduce-scatters Ψ after every micro batch. Activation checkpointing recomputes
  with what the backward pass has gathered anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.timing import muon
from dsplan.timing.collectives import collective
from dsplan.timing.profile import Profile
from dsplan.timing.rates import Machine
from dsplan.timing.released import released_share

#: runtime/engine.py MEMORY_OPT_ALLREDUCE_SIZE: elements of a bucket of stage 0.
_STAGE_0_BUCKET = 500_000_000
#: torch's DistributedDataParallel, bucket_cap_mb.
_DDP_BUCKET_BYTES = 25 * 2**20
_LAST_STAGE = 3
#: Tensors that an optimizer reads and writes of an element in fp32.
_TENSORS = {"adamw": 7, "adam": 7, "lion": 5, "adagrad": 5, "sgd": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Seconds of what an engine does beside the model's kernels.

    Attributes:
        overlaps: collectives run beside the passes.
        gather_forward_s, gather_backward_s: parameters brought together for a pass (stage 3).
        reduce_s: one reduction of all gradients.
        reduce_kernels_s: what the device copies and divides for it, which no other stream hides: both want its memory.
        reduces_every_micro_batch: or at the boundary only.
        gradient_kernels_s: copies and casts of gradients within a backward pass.
        host_gradients_s: fp32 gradients on their way to the host at the boundary.
        host_save_s, host_restore_s: gradients of one micro batch to the host in the model's precision, and back.
        always_saves: they go there after every micro batch; else only where several are accumulated.
        norm_s: the norm of the gradients, before which the update waits.
        update_s: the update on the device: casts, clipping, optimizer, copies.
        host_update_s: the same on the host.
        copy_back_s: updated parameters from the host.
        gather_update_s: updated parameters to all ranks.
    """

    overlaps: bool = False
    gather_forward_s: float = 0.0
    gather_backward_s: float = 0.0
    reduce_s: float = 0.0
    reduce_kernels_s: float = 0.0
    reduces_every_micro_batch: bool = False
    gradient_kernels_s: float = 0.0
    host_gradients_s: float = 0.0
    host_save_s: float = 0.0
    host_restore_s: float = 0.0
    always_saves: bool = False
    norm_s: float = 0.0
    update_s: float = 0.0
    host_update_s: float = 0.0
    copy_back_s: float = 0.0
    gather_update_s: float = 0.0

    def gradient_s(self, *, boundary: bool) -> float:
        """Seconds of reducing the gradients after one micro batch."""
        return self.reduce_s if boundary or self.reduces_every_micro_batch else 0.0

    def kernels_s(self, *, boundary: bool) -> float:
        """Seconds of what the device copies of the gradients of one micro batch."""
        reduces = boundary or self.reduces_every_micro_batch
        return self.gradient_kernels_s + (self.reduce_kernels_s if reduces else 0.0)

    def host_copies_s(self, micro_batches: int) -> float:
        """Seconds of copying gradients to the host and back over a step.

        Stages 1 and 2 accumulate on the host where there is more than one micro batch: each is saved, and all but the
        first restore what was saved (``async_accumulate_grad_in_cpu_via_gpu``). Stage 3 saves and restores every time
        (``partition_grads``). At the boundary fp32 gradients follow.
        """
        seconds = self.host_gradients_s
        if self.always_saves:
            seconds += micro_batches * (self.host_save_s + self.host_restore_s)
        elif micro_batches > 1:
            seconds += micro_batches * self.host_save_s + (micro_batches - 1) * self.host_restore_s
        return seconds


def work_of(model: ModelShape, plan: Plan, cluster: Cluster, machine: Machine) -> Work:
    """The engine's work of one step, apart from the model's kernels; the same for every micro batch size."""
    key = (
        *("work", machine.host_threads, machine.links, model, plan.zero, plan.ddp, plan.gradient_clipping),
        *(
            plan.workload.activation_checkpointing,
            plan.workload.precision,
            plan.workload.optimizer,
            cluster.gpus_per_node,
            cluster.num_nodes,
        ),
    )
    return machine.profile.once(key, partial(_work_of, model, plan, cluster, machine))


def _work_of(model: ModelShape, plan: Plan, cluster: Cluster, machine: Machine) -> Work:
    engine = _Engine(model, plan, cluster, machine)
    if plan.ddp:
        return engine.ddp()
    if plan.zero.stage == 0:
        return engine.stage_0()
    return engine.stage_3() if plan.zero.stage == _LAST_STAGE else engine.stages_1_and_2()


class _Engine:
    def __init__(self, model: ModelShape, plan: Plan, cluster: Cluster, machine: Machine) -> None:
        self.model, self.plan, self.cluster, self.machine = model, plan, cluster, machine
        self.profile: Profile = machine.profile
        self.dtype = plan.workload.precision
        self.e = plan.workload.element_bytes
        self.psi = model.num_trained_parameters
        self.ranks = cluster.world_size
        self.own = -(-self.psi // self.ranks)

    def send(self, operator: str, elements: float, bucket: float) -> float:
        """Seconds of a collective over ``elements`` in buckets of ``bucket``."""
        if elements <= 0:  # stage 3 of a small model: every parameter stays whole on every rank
            return 0.0
        bucket = min(max(bucket, 1), elements)
        one = collective(self.profile, self.machine.links, self.cluster, operator, bucket * self.e)
        return elements / bucket * one

    def kernel(self, operator: str, elements: float, dtype: str | None = None) -> float:
        return self.profile.elementwise(operator, dtype or self.dtype, elements)

    def update(self, elements: float) -> float:
        """The optimizer over fp32 elements; others than Adam by the tensors they read and write, of Adam's seven."""
        return self.profile.update(elements) * self.tensors / 7

    @cached_property
    def tensors(self) -> float:
        """What the optimizer reads and writes of an element; of Muon the mean of its matrices and of Adam's rest."""
        optimizer = self.plan.workload.optimizer
        if optimizer == "muon":
            share = muon.muon_elements(self.model) / self.psi
            return share * muon.TENSORS + (1 - share) * _TENSORS["adam"]
        return _TENSORS[optimizer]

    def orthogonal(self) -> float:
        """Seconds in which the device makes Muon's matrices orthogonal; of other optimizers none."""
        if self.plan.workload.optimizer != "muon":
            return 0.0
        return muon.orthogonalisation(self.profile, self.model, self.plan, self.ranks)

    def fp32_update(self, elements: float) -> float:
        """Clipping and optimizer; in 16 bits also the casts of gradients and parameters."""
        seconds = self.update(elements)
        if self.plan.gradient_clipping:
            seconds += self.kernel("scale", elements, "fp32")
        if self.dtype != "fp32":
            seconds += self.kernel("cast", elements) + self.kernel("cast", elements, "fp32")
        return seconds

    def stage_0(self) -> Work:
        # allreduce_bucket: flatten, divide, and copy back what was reduced
        copies = 2 * self.kernel("copy", self.psi) + self.kernel("scale", self.psi)
        flat = self.kernel("copy", self.psi) if self.dtype != "fp32" else 0.0
        return Work(
            reduce_s=self.send("all_reduce", self.psi, _STAGE_0_BUCKET) + copies,
            norm_s=self.kernel("norm", self.psi) + flat,
            update_s=self.fp32_update(self.psi) + self.orthogonal(),
        )

    def ddp(self) -> Work:
        """Parameters and gradients in fp32; autocast casts every weight once a pass, the scaler unscales in place.

        torch/csrc/distributed/c10d/reducer.hpp (bucket_bytes_cap 25 MiB), torch/amp/grad_scaler.py.
        """
        mixed = self.dtype != "fp32"
        self.e, self.dtype = 4, "fp32"
        casts = self.kernel("cast", self.psi) if mixed else 0.0
        return Work(
            overlaps=True,
            reduce_s=self.send("all_reduce", self.psi, _DDP_BUCKET_BYTES / self.e) if self.ranks > 1 else 0.0,
            gradient_kernels_s=casts + 2 * self.kernel("copy", self.psi),  # the weights' casts; into a bucket and out
            norm_s=self.kernel("norm", self.psi) if self.plan.gradient_clipping else 0.0,
            update_s=self.fp32_update(self.psi) + (self.kernel("scale", self.psi) if mixed else 0.0),
        )

    def judged(self, elements: float) -> float:
        """Whether gradients are finite, and their norm in double precision, by bytes of what was measured.

        runtime/utils.py ``has_inf_or_nan``: amax and amin, two readings as of a norm; in 16 bits only.
        ``g.to(get_norm_dtype()).norm(2)`` (stage_1_and_2.py get_grad_norm_direct, stage3.py): a cast that reads e and
        writes 8 bytes, where the measured one moves 6, and a norm that reads 8 in place of e.
        """
        reading = self.kernel("norm", elements)
        finite = 2 * reading if self.dtype != "fp32" else 0.0
        return finite + (self.e + 8) / 6 * self.kernel("cast", elements) + 8 / self.e * reading

    def stages_1_and_2(self) -> Work:
        """Of a gradient the same copies at both stages: after every micro batch at stage 2, at the boundary at stage 1.

        ``reduce_independent_p_g_buckets_and_remove_grads`` copies it into the bucket, ``average_tensor`` divides it and
        ``copy_grads_in_partition`` copies the rank's own part out. What is flattened for the all-reduce is one slice of
        the bucket, but where two ranks' parts meet, and of one tensor nothing is copied (``allreduce_bucket``).
        """
        zero = self.plan.zero
        every = zero.stage > 1
        reduction = self.kernel("copy", self.psi) + self.kernel("scale", self.psi) + self.kernel("copy", self.own)
        reduce_s = self.send("all_reduce", self.psi, zero.reduce_bucket_size)
        gather = self.send("all_gather", self.psi, zero.allgather_bucket_size)
        if not zero.offloads_optimizer:
            return Work(
                overlaps=zero.overlaps_communication,
                reduce_s=reduce_s,
                reduce_kernels_s=reduction,
                reduces_every_micro_batch=every,
                norm_s=self.judged(self.own),
                update_s=self.fp32_update(self.own) + self.kernel("copy", self.own) + self.orthogonal(),
                gather_update_s=gather,
            )
        host, back = self.on_the_host()
        pinned = zero.offload_optimizer.pin_memory
        return Work(
            overlaps=zero.overlaps_communication,
            reduce_s=reduce_s,
            reduce_kernels_s=reduction,
            reduces_every_micro_batch=True,
            gradient_kernels_s=self.kernel("cast", self.own),
            host_gradients_s=self.profile.copy("to_host", 4 * self.own, pinned=pinned),
            host_save_s=self.profile.copy("to_host", self.e * self.own, pinned=pinned),
            host_restore_s=self.profile.copy("to_device", self.e * self.own, pinned=pinned),
            norm_s=self.judged(self.own),
            update_s=self.orthogonal(),
            host_update_s=host,
            copy_back_s=back,
            gather_update_s=gather,
        )

    def on_the_host(self) -> tuple[float, float]:
        """Clipping, Adam and the cast on the host; the copy of 16-bit parameters to the device.

        The ranks of a node share its cores and its memory. A node with more devices than the measured one is taken
        for a host that is larger in proportion. With threads given, each rank has so many and no more.
        """
        threads = self.machine.host_threads
        share = 1 if threads else min(self.cluster.gpus_per_node, self.profile.document["gpus"])
        operators = ["cpu_adam"]
        if self.plan.gradient_clipping:
            operators.append("scale_")
        if self.dtype != "fp32":
            operators.append("cast")
        host = sum(self.profile.host(operator, share * self.own, threads=threads) for operator in operators)
        pinned = self.plan.zero.offload_optimizer.pin_memory
        return host, self.profile.copy("to_device", self.e * self.own, pinned=pinned)

    def stage_3(self) -> Work:
        zero = self.plan.zero
        resident = sum(
            parameter.numel
            for parameter in self.model.parameters
            if parameter.numel <= zero.stage3_param_persistence_threshold
        )
        every = self.model.num_parameters  # frozen ones are partitioned and gathered too
        gathered, part = every - resident, -(-every // self.ranks)
        node = self.own * self.cluster.gpus_per_node  # the ranks of a node share its drive
        bucket = max(zero.stage3_prefetch_bucket_size, *(one.numel for one in self.model.block_parameters))
        # A rank alone has every parameter whole, and takes it as it is (NoGatherHandle, NoGatherCoalescedHandle).
        gather = self.send("all_gather", gathered, bucket) if self.ranks > 1 else 0.0
        if zero.offloads_parameters:
            gather += self.profile.copy("to_device", self.e * part, pinned=zero.offload_param.pin_memory)
            if zero.offload_param.device == "nvme":
                gather += self.e * part * self.cluster.gpus_per_node / self.profile.drive[0]
        # __add_grad_to_ipg_bucket; reduce_scatter_coalesced, which lays out the ranks' parts one after the other, and
        # divides; partition_grads
        into_bucket = 2 * self.kernel("copy", self.psi) + self.kernel("scale", self.psi) + self.kernel("copy", self.own)
        work = Work(
            overlaps=zero.overlaps_communication,
            gather_forward_s=gather,
            gather_backward_s=gather * released_share(self.model, self.plan),
            # __avg_scatter_contiguous_grads; with Muon there is no other way
            reduce_s=self.send(
                "reduce_scatter" if zero.reduce_scatter or not zero.contiguous_gradients else "all_reduce",
                self.psi,
                zero.reduce_bucket_size,
            ),
            reduces_every_micro_batch=True,
            gradient_kernels_s=into_bucket,
            norm_s=self.judged(self.own),
            gather_update_s=self.send("all_gather", resident, resident) if resident and self.ranks > 1 else 0.0,
        )
        if not zero.offloads_optimizer:
            tile = min(zero.sub_group_size, self.own)
            update = self.own / tile * (self.fp32_update(tile) + self.kernel("copy", tile))
            return replace(work, update_s=update + self.orthogonal())
        host, back = self.on_the_host()
        if zero.offload_optimizer.device == "nvme":
            read, write = self.profile.drive
            host += 12 * node / read + 12 * node / write  # fp32 parameters and both moments, there and back
        share = zero.offload_optimizer.ratio
        pinned = zero.offload_optimizer.pin_memory
        return replace(
            work,
            host_gradients_s=share * self.profile.copy("to_host", 4 * self.own, pinned=pinned),
            host_save_s=self.profile.copy("to_host", self.e * self.own, pinned=pinned),
            host_restore_s=self.profile.copy("to_device", self.e * self.own, pinned=pinned),
            always_saves=True,
            host_update_s=share * host,
            update_s=((1 - share) * self.fp32_update(self.own) if share < 1 else 0.0) + self.orthogonal(),
            copy_back_s=share * back,
        )
