"""The time of one step: what the device computes, what ranks send, what the host and its memory do, and in what order.

A step is g micro batches of forward and backward and one update. The host asks for kernels ahead of the device, so a
pass takes the longer of the two (:mod:`dsplan.timing.host`, :mod:`dsplan.timing.kernels`); collectives run beside the
passes where ``overlap_comm`` puts them on a stream of their own, else after them. What each engine moves and updates
is in :mod:`dsplan.timing.engines`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dsplan.families import Parameter
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.timing.engines import work_of
from dsplan.timing.host import host_times
from dsplan.timing.kernels import STAGE_OF_OWN_LINEAR, Kernels, kernels
from dsplan.timing.rates import Machine
from dsplan.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """One optimizer step of every rank.

    Attributes:
        seconds: of the whole step.
        forward_s, backward_s: of one micro batch.
        update_s: of the step at the accumulation boundary.
        parts: busy seconds by kind of work over the whole step; kinds that overlap add up to more than the step.
        dominant: the part that is longest.
        tokens_per_s: of all ranks together.
        model_flops_utilisation: floating-point work of the model (recomputation not counted) by the peak rate of all
            devices, 0 to 1; None where no peak rate is known.
        measured: whether it was computed from a profile of this kind of device.
    """

    seconds: float
    forward_s: float
    backward_s: float
    update_s: float
    parts: dict[str, float]
    dominant: str
    tokens_per_s: float
    model_flops_utilisation: float | None
    measured: bool


def step_time(model: ModelShape, plan: Plan, cluster: Cluster, machine: Machine) -> StepTime:
    """How long a step of ``plan`` takes.

    Args:
        model: what is trained.
        plan: the strategy and workload.
        cluster: its ranks and nodes; the device is the machine's.
        machine: the rates (:func:`dsplan.timing.rates.machine`).

    Raises:
        InputError: the profile lacks what the plan needs, or the model has parts without times.
    """
    return StepTimer(model, cluster, machine).of(plan)


class StepTimer:
    """The step times of many plans of one model on one cluster; arguments as of :func:`step_time`.

    What does not depend on the batch is worked out once for a configuration, what an engine leaves to the model once
    for a micro batch.
    """

    def __init__(self, model: ModelShape, cluster: Cluster, machine: Machine) -> None:
        self._model, self._cluster, self._machine = model, cluster, machine
        self._configurations: dict[tuple[Any, ...], _Configuration] = {}
        self._flops: dict[int, float] = {}

    def of(self, plan: Plan) -> StepTime:
        """As :func:`step_time`."""
        workload = plan.workload
        key = (
            *(id(plan.zero), plan.ddp, plan.gradient_clipping),
            *(workload.precision, workload.optimizer, workload.activation_checkpointing),
        )
        configuration = self._configurations.get(key)
        if configuration is None:
            configuration = _Configuration(self._model, plan, self._cluster, self._machine)
            self._configurations[key] = configuration
        return configuration.step(plan, self._flops_of_a_token(workload.sequence_length))

    def _flops_of_a_token(self, sequence_length: int) -> float:
        found = self._flops.get(sequence_length)
        if found is None:
            found = self._flops[sequence_length] = model_flops(self._model, sequence_length)
        return found


class _Configuration:
    """A plan without its batch; ``plan`` is any of those that share it, and keeps its ``zero`` alive."""

    def __init__(self, model: ModelShape, plan: Plan, cluster: Cluster, machine: Machine) -> None:
        self.model, self.plan, self.machine, self.ranks = model, plan, machine, cluster.world_size
        self.host = host_times(machine.profile, model, plan, cluster.world_size)
        self.work = work_of(model, plan, cluster, machine)
        self.peak = machine.peak_flops(plan.workload.precision)
        own_linear = plan.zero.stage == STAGE_OF_OWN_LINEAR and plan.zero.memory_efficient_linear
        workload = plan.workload
        # A micro batch takes the device as long in every configuration that has this in common.
        alike = ("passes", model, workload.precision, workload.activation_checkpointing, own_linear)
        self.own_linear = own_linear
        self.passes: dict[tuple[int, int], _Passes] = machine.profile.once(alike, dict)

    def step(self, plan: Plan, flops_of_a_token: float) -> StepTime:
        """The step of ``plan``, which is one of this configuration."""
        workload, work, host = plan.workload, self.work, self.host
        micro_batches = workload.gradient_accumulation_steps
        batch = (workload.micro_batch_size, workload.sequence_length)
        of_model = self.passes.get(batch)
        if of_model is None:
            of_model = self.passes[batch] = self._passes(workload)
        copies = work.host_copies_s(micro_batches)
        last, first = self._both(of_model, copies / micro_batches, boundary=True)
        earlier = 0.0
        if micro_batches > 1:
            earlier, _ = self._both(of_model, copies / micro_batches, boundary=False)
        update = (
            max(host.step, work.norm_s) + work.update_s + work.host_update_s + work.copy_back_s + work.gather_update_s
        )
        seconds = last + (micro_batches - 1) * earlier + update
        boundaries = work.gradient_s(boundary=True) + (micro_batches - 1) * work.gradient_s(boundary=False)
        parts = {
            "matrix products": micro_batches * of_model.products,
            "memory-bound kernels": micro_batches * of_model.memory
            + work.kernels_s(boundary=True)
            + (micro_batches - 1) * work.kernels_s(boundary=False),
            "communication": micro_batches * (work.gather_forward_s + work.gather_backward_s)
            + boundaries
            + work.gather_update_s,
            "optimizer on the device": work.norm_s + work.update_s,
            "optimizer on the host": work.host_update_s,
            "copies to and from the host": copies + work.copy_back_s,
            "host, asking": micro_batches * (host.forward + host.backward) + host.step,
        }
        tokens = workload.micro_batch_size * workload.sequence_length * micro_batches * self.ranks
        flops = flops_of_a_token * tokens
        return StepTime(
            seconds=seconds,
            forward_s=first,
            backward_s=last - first,
            update_s=update,
            parts=parts,
            dominant=max(parts, key=parts.__getitem__),
            tokens_per_s=tokens / seconds,
            model_flops_utilisation=None if self.peak is None else flops / (seconds * self.peak * self.ranks),
            measured=self.machine.measured,
        )

    def _both(self, of_model: _Passes, copies_s: float, *, boundary: bool) -> tuple[float, float]:
        """Seconds of the two passes of one micro batch together, and of the forward alone."""
        work, host = self.work, self.host
        first = _beside(max(host.forward, of_model.forward), work.gather_forward_s, work.overlaps)
        gradients = work.gradient_s(boundary=boundary)
        second = _beside(
            of_model.backward + work.kernels_s(boundary=boundary), work.gather_backward_s + gradients, work.overlaps
        )
        # On the stream of the reduction: beside the kernels, or among them.
        second = _beside(second, copies_s, work.overlaps)
        # Asked for while the forward still runs; the wait at the end is for the later of the two.
        return max(host.forward + host.backward, first + second), first

    def _passes(self, workload: Workload) -> _Passes:
        model = self.model
        key = ("kernels", model, workload.micro_batch_size, workload.sequence_length, workload.precision)
        pieces = self.machine.profile.once(
            (*key, self.own_linear),
            partial(kernels, self.machine.profile, model, workload, own_linear=self.own_linear),
        )
        return _passes(pieces, model.num_layers, workload.activation_checkpointing)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passes:
    """Seconds that the device computes for one micro batch of a model.

    Attributes:
        forward, backward: of the passes, recomputation in the backward one.
        products: of both, the matrix products and attention.
        memory: of both, the rest.
    """

    forward: float
    backward: float
    products: float
    memory: float


def _passes(pieces: Kernels, layers: int, checkpointing: str) -> _Passes:
    again_products, again_memory = pieces.block.recomputed(checkpointing)
    forward = pieces.embedding.forward + layers * pieces.block.forward + pieces.head.forward
    backward = pieces.embedding.backward + layers * pieces.block.backward + pieces.head.backward
    recomputed = layers * (again_products + again_memory)
    products = layers * (pieces.block.forward_products + again_products + pieces.block.backward_products) + sum(
        piece.forward_products + piece.backward_products for piece in (pieces.embedding, pieces.head)
    )
    return _Passes(
        forward=forward,
        backward=backward + recomputed,
        products=products,
        memory=forward + backward + recomputed - products,
    )


def model_flops(model: ModelShape, sequence_length: int) -> float:
    """Floating-point operations of one token, forward and backward, recomputation not counted.

    6 for each weight that a token is multiplied with, and 12·L·s·a·d for attention's two products
    (PaLM, arXiv:2204.02311, appendix B); 4 for a weight that is not trained, whose gradient nobody computes.
    Embeddings are looked up, not multiplied with; of experts a token is multiplied with those that it is routed to.
    """
    decoder = model.decoder
    share = 1.0 if decoder is None or decoder.experts is None else decoder.experts.per_token / decoder.experts.num

    def multiplied(parameters: Sequence[Parameter]) -> float:
        matrices = [one for one in parameters if len(one.shape) > 1]
        return sum(one.numel * (share if len(one.shape) > 2 else 1) * (6 if one.trained else 4) for one in matrices)

    if decoder is None:
        blocks = model.num_layers * multiplied(model.block_parameters)
    else:
        kinds = Counter(decoder.layers)
        blocks = sum(count * multiplied(decoder.kinds[kind] or model.block_parameters) for kind, count in kinds.items())
    head_trained = all(one.trained for one in (*model.embedding_parameters, *model.head_parameters)[-1:])
    head = model.vocab_size * model.hidden_size * (6 if head_trained else 4)
    attention = 12 * model.num_layers * sequence_length * model.num_attention_heads * model.head_width
    return blocks + head + attention


def _beside(computing: float, sending: float, overlaps: bool) -> float:
    return max(computing, sending) if overlaps else computing + sending
