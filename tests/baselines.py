"""What people use today, on the same records: DeepSpeed's own estimators, and the ZeRO paper's 2Ψ + 2Ψ + KΨ.

Both say what the states of a model take, and nothing of its activations. They are written down as they are, with
nothing added in their favour or to their cost; ``tests/test_baselines.py`` holds the first to the installed DeepSpeed.

Legend: Ψ parameters, N ranks, K bytes of optimizer states for a parameter. Every result is in bytes of one rank's
device, but ``host_bytes``, which is a node's.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsplan.model import ModelShape
from dsplan.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What an estimator says: of a rank's device, and of the host's memory in a node (None: it says nothing)."""

    device_bytes: int
    host_bytes: int | None = None


def deepspeed_estimate(model: ModelShape, plan: Plan, world_size: int) -> Baseline:
    """DeepSpeed's estimate for one node of ``world_size`` ranks.

    Stages 2 and 3: ``estimate_zero2_model_states_mem_needs`` and ``estimate_zero3_model_states_mem_needs`` with
    ``zero_init``. DeepSpeed has none for the others, so they are taken as a reader would take them: stage 1 as stage 2,
    stage 0 as stage 2 on one GPU, where nothing is partitioned.
    """
    zero = plan.zero
    if zero.stage == 3:
        return _zero3(model, world_size, optimizer=zero.offloads_optimizer, parameters=zero.offloads_parameters)
    gpus = world_size if zero.stage else 1
    return _zero2(model.num_parameters, gpus, offload=zero.offloads_optimizer)


def _zero2(total_params: int, num_gpus: int, *, offload: bool) -> Baseline:
    """``estimate_zero2_model_states_mem_needs`` (DeepSpeed 0.19.8, runtime/zero/stage_1_and_2.py), one node."""
    if offload:
        host, device = 1.5 * total_params * max(4 * num_gpus, 16), 2 * total_params
    else:
        host, device = 1.5 * total_params * 4 * num_gpus, 2 * total_params + int(18 * total_params / num_gpus)
    return Baseline(device_bytes=device, host_bytes=int(host))


def _zero3(model: ModelShape, num_gpus: int, *, optimizer: bool, parameters: bool) -> Baseline:
    """``estimate_zero3_model_states_mem_needs`` (DeepSpeed 0.19.8, runtime/zero/stage3.py), one node, zero.Init."""
    total, largest = model.num_parameters, largest_layer_parameters(model)
    if not optimizer:
        host, device = 4.0 * largest * num_gpus, 4 * largest + int(18 * total / num_gpus)
    elif parameters:
        host, device = 18.0 * total, 4 * largest
    else:
        host, device = 16.0 * total, 4 * largest + int(2 * total / num_gpus)
    return Baseline(device_bytes=device, host_bytes=int(1.5 * host))


def largest_layer_parameters(model: ModelShape) -> int:
    """The most parameters that one module holds itself: ``model_to_params`` of runtime/zero/stage3.py."""
    layers: dict[str, int] = {}
    for parameter in model.parameters:
        module = parameter.name.rpartition(".")[0]
        layers[module] = layers.get(module, 0) + parameter.numel
    return max(layers.values())


def plain_formula(plan: Plan, num_parameters: int, world_size: int) -> Baseline:
    """2Ψ + 2Ψ + KΨ: parameters, gradients and optimizer states, each over N where the stage partitions it.

    ZeRO, arXiv:1910.02054, section 3.1 and figure 1. In fp32 it is 4Ψ + 4Ψ + KΨ, and K has no fp32 copy. What is
    offloaded leaves the device: gradients with the optimizer (ZeRO-Offload, arXiv:2101.06840, section 4), parameters
    by ``offload_param`` (ZeRO-Infinity, arXiv:2104.07857).
    """
    zero, element = plan.zero, plan.workload.element_bytes
    parameters = 0.0 if zero.offloads_parameters else element * num_parameters / (world_size if zero.stage == 3 else 1)
    gradients = element * num_parameters / (world_size if zero.stage >= 2 else 1)
    states = states_per_parameter(plan) * num_parameters / (world_size if zero.stage >= 1 else 1)
    if zero.offloads_optimizer:
        gradients = states = 0.0
    return Baseline(device_bytes=int(parameters + gradients + states))


#: fp32 tensors that an optimizer keeps of every parameter.
_MOMENTS = {"adamw": 2, "adam": 2, "lion": 1, "adagrad": 1, "sgd": 0, "muon": 1}


def states_per_parameter(plan: Plan) -> int:
    """K: 12 for Adam in mixed precision (fp32 copy, momentum, variance), 8 in fp32; less for smaller optimizers."""
    copy = 4 if plan.workload.element_bytes < 4 else 0
    return copy + 4 * _MOMENTS[plan.workload.optimizer]
