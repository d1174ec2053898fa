"""The optimizer that DeepSpeed is to make."""

from __future__ import annotations

from collections.abc import Iterator

from dsplan.check.configuration import ZERO, Configuration
from dsplan.check.finding import ERROR, NOTE, WARNING, Edit, Finding, Rule
from dsplan.check.tree import find
from dsplan.dsconfig.consumers import DEEPSPEED, LIGHTNING
from dsplan.dsconfig.optimizer_section import CLASSES, REMOVED, REMOVED_SINCE
from dsplan.errors import nearest

UNKNOWN = Rule(
    id="DS501", name="unknown-optimizer", severity=ERROR, summary="Neither DeepSpeed nor torch.optim has the optimizer."
)
ARGUMENT = Rule(
    id="DS502", name="optimizer-argument", severity=ERROR, summary="The optimizer does not take the argument."
)
UNTESTED = Rule(
    id="DS503",
    name="untested-optimizer",
    severity=ERROR,
    summary="ZeRO takes the optimizer only with zero_allow_untested_optimizer.",
)
OFFLOAD = Rule(
    id="DS504",
    name="optimizer-and-offload",
    severity=ERROR,
    summary="The optimizer and offload_optimizer do not go together.",
)
MUON = Rule(id="DS505", name="muon", severity=ERROR, summary="Muon at stage 3 with what it cannot be combined with.")
LOSS_SCALE = Rule(id="DS506", name="lamb-loss-scale", severity=ERROR, summary="Lamb needs dynamic loss scaling.")
RULES = (UNKNOWN, ARGUMENT, UNTESTED, OFFLOAD, MUON, LOSS_SCALE)

#: ``runtime/config.py`` (``DEEPSPEED_OPTIMIZERS``): taken in any case.
_DEEPSPEED = ("Adam", "AdamW", "Adagrad", "Lamb", "Lion", "Muon", "MuAdam", "MuAdamW", "MuSGD")
#: Classes of torch.optim, which have one spelling (``getattr(torch.optim, name)``).
_TORCH = (
    *("ASGD", "Adadelta", "Adafactor", "Adamax", "LBFGS", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
    "SparseAdam",
)
#: ``runtime/zero/utils.py`` (``ZERO_SUPPORTED_OPTIMIZERS``, and Muon in ``is_zero_supported_optimizer``).
_TESTED = ("adam", "adamw", "adagrad", "lion", "muon")
#: Optimizers whose kernels run on the GPU alone.
_GPU_ONLY = ("lamb",)
#: Optimizers that DeepSpeed has vectorised for the CPU (``ops/adam``, ``ops/lion``, ``ops/adagrad``).
_CPU = ("adam", "adamw", "lion", "adagrad", "muon")

_SHARED = {"lr", "weight_decay"}
_ADAM = {*_SHARED, "betas", "eps", "amsgrad", "bias_correction", "torch_adam", "adam_w_mode", "fp32_optimizer_states"}
_TORCH_ADAM = {"foreach", "maximize", "capturable", "differentiable", "fused"}
#: Every argument that one of the classes behind the name takes: with and without offload, torch's and DeepSpeed's.
_ARGUMENTS = {
    "adam": {*_ADAM, *_TORCH_ADAM, "set_grad_none"},
    "adamw": {*_ADAM, *_TORCH_ADAM, "set_grad_none"},
    "lion": {*_SHARED, "betas", "set_grad_none", "fp32_optimizer_states"},
    "adagrad": {
        *_SHARED,
        *("eps", "amsgrad", "fp32_optimizer_states", "lr_decay", "initial_accumulator_value", "foreach", "maximize"),
        *("differentiable", "fused"),
    },
    "lamb": {*_SHARED, "betas", "eps", "eps_inside_sqrt", "bias_correction", "max_coeff", "min_coeff", "amsgrad"},
    "muon": {*_ADAM, "momentum", "ns_method", "muon_lr", "adam_lr", "foreach"},
    "sgd": {*_SHARED, "momentum", "dampening", "nesterov", "maximize", "foreach", "differentiable", "fused"},
}
#: Optimizers for which DeepSpeed picks what it knows of the arguments (``_muon_param_groups``).
_PICKS = ("muon",)


def known_type(config: Configuration) -> Iterator[Finding]:
    """DeepSpeed ``runtime/engine.py`` (``_is_supported_optimizer``, ``_configure_basic_optimizer``)."""
    path, given = "optimizer.type", config.get("optimizer.type")
    if given is None or given == "auto" or not isinstance(config.get("optimizer"), dict):
        return
    if not isinstance(given, str):
        yield config.finding(UNKNOWN, path, f"optimizer.type is {given!r}, which is no name", '"AdamW"', on_value=True)
        return
    name = given.lower()
    if name in (known.lower() for known in _DEEPSPEED) or given in _TORCH:
        return
    if name in REMOVED:
        message = f"DeepSpeed has no {given} any more since {REMOVED_SINCE}"
        yield config.finding(UNKNOWN, path, message, '"AdamW" or "Lamb"', on_value=True)
        return
    exact = next((known for known in _TORCH if known.lower() == name), None)
    if exact is not None:
        message = f"DeepSpeed looks {given} up in torch.optim, which spells it {exact}"
        member = find(config.root, path)
        edit = None if member is None else Edit(offset=member.node.offset, end=member.node.end, text=f'"{exact}"')
        yield config.finding(UNKNOWN, path, message, f'"{exact}"', on_value=True, edit=edit)
        return
    near = [CLASSES[name]] if name in CLASSES else nearest(given, (*_DEEPSPEED, *_TORCH), limit=1)
    message = f"there is no optimizer {given}: DeepSpeed reads the file without a word and stops when it makes one"
    yield config.finding(UNKNOWN, path, message, f'"{near[0]}"' if near else "AdamW", on_value=True)


def arguments(config: Configuration) -> Iterator[Finding]:
    """The optimizer's constructor refuses an argument that it does not have (``_configure_basic_optimizer``)."""
    name = _name(config)
    known = _ARGUMENTS.get(name)
    if known is None:
        return
    for key in config.section("optimizer.params"):
        if key in known or key == "max_grad_norm":  # which has a rule of its own
            continue
        near = nearest(key, known, limit=1)
        message = f"{config.get('optimizer.type')} takes no argument {key}"
        if name in _PICKS:
            message += ": DeepSpeed ignores it without a word"
        instead = f'"{near[0]}"' if near else "remove it"
        severity = WARNING if name in _PICKS and not near else ERROR
        yield config.finding(ARGUMENT, f"optimizer.params.{key}", message, instead, severity=severity)


def untested(config: Configuration) -> Iterator[Finding]:
    """DeepSpeed ``runtime/engine.py`` (``_do_optimizer_sanity_check``), ``runtime/zero/utils.py``."""
    name = _name(config)
    allowed = config.get("zero_allow_untested_optimizer", False)
    # The Trainer sets the key only for its own optimizer, so that it makes no difference here.
    if name and name not in _TESTED and _is_known(config) and config.stage and not allowed:
        message = f"ZeRO takes {config.get('optimizer.type')} only on request"
        instead = '"zero_allow_untested_optimizer": true at the top level'
        yield config.finding(UNTESTED, "optimizer.type", message, instead, on_value=True)


def with_offload(config: Configuration) -> Iterator[Finding]:
    """Which optimizers run on the CPU.

    Source: DeepSpeed ``runtime/engine.py`` (``_configure_basic_optimizer``, ``get_optimizer_configuration``).
    """
    if not _updates_on_cpu(config):
        return
    name = _name(config)
    if name in _GPU_ONLY:
        message = f"{config.get('optimizer.type')} runs on the GPU only, and offload_optimizer updates on the CPU"
        yield config.finding(OFFLOAD, "optimizer.type", message, '"AdamW", or no offload_optimizer', on_value=True)
    elif name and name not in _CPU and _is_known(config):
        message = f"with offload_optimizer {config.get('optimizer.type')} is torch's on the CPU, which is slow"
        yield config.finding(
            OFFLOAD, "optimizer.type", message, '"AdamW", "Lion" or "Adagrad"', severity=WARNING, on_value=True
        )
    elif config.get("optimizer.params.torch_adam") is True:
        message = "torch_adam with offload_optimizer puts torch's Adam on the CPU in place of DeepSpeed's faster one"
        yield config.finding(OFFLOAD, "optimizer.params.torch_adam", message, "false", severity=WARNING, on_value=True)


def force_cpu_optimizer(config: Configuration) -> Iterator[Finding]:
    """``zero_force_ds_cpu_optimizer`` is about the script's optimizer, and about offload, only.

    Source: DeepSpeed ``runtime/engine.py`` (``_configure_optimizer``). transformers and accelerate replace the
    script's optimizer by DeepSpeed's own (accelerate ``utils/deepspeed.py``, ``map_pytorch_optim_to_deepspeed``).
    """
    path, forced = "zero_force_ds_cpu_optimizer", config.get("zero_force_ds_cpu_optimizer", True)
    if not config.complete or not isinstance(forced, bool) or config.stage is None:
        return
    if _updates_on_cpu(config) and not config.section("optimizer"):
        if not forced:
            message = f"{path} false lets a GPU optimizer of the script update on the CPU, slowly"
            yield config.finding(OFFLOAD, path, message, "an optimizer section", severity=WARNING)
        elif config.run.consumer in (DEEPSPEED, LIGHTNING):
            message = (
                "with offload_optimizer DeepSpeed stops at any optimizer of the script but DeepSpeedCPUAdam and "
                "DeepSpeedCPULion"
            )
            instead = f'an optimizer section, or "{path}": false'
            yield config.finding(OFFLOAD, f"{ZERO}.offload_optimizer", message, instead, severity=NOTE)
    elif config.has(path):
        why = "the optimizer is the file's" if _updates_on_cpu(config) else "nothing is offloaded"
        message = f"{path} has no effect, since {why}: it is about a script's optimizer and offload_optimizer"
        yield config.finding(OFFLOAD, path, message, "remove it", severity=NOTE)


def muon(config: Configuration) -> Iterator[Finding]:
    """DeepSpeed ``runtime/zero/stage3.py`` (``__init__``: "Muon and reduce scatter cannot be used together")."""
    if _name(config) != "muon" or config.stage != 3:
        return
    given = config.has(f"{ZERO}.reduce_scatter")
    if config.zero("reduce_scatter", True) is not False and (given or not config.excerpt):
        message = "Muon at stage 3 does not go with reduce_scatter, which is true unless it is given"
        yield config.finding(MUON, f"{ZERO}.reduce_scatter", message, '"reduce_scatter": false')
    if config.zero("zero_quantized_gradients") is True:
        message = "Muon at stage 3 does not go with zero_quantized_gradients"
        yield config.finding(MUON, f"{ZERO}.zero_quantized_gradients", message, "false", on_value=True)


def lamb_loss_scale(config: Configuration) -> Iterator[Finding]:
    """DeepSpeed ``runtime/engine.py`` (``_do_sanity_check``, ``dynamic_loss_scale``: fp16.loss_scale is 0).

    The engine looks at loss_scale alone: without fp16 it is 0, so that Lamb trains in fp32 and bf16 as well.
    """
    scale = config.get("fp16.loss_scale", 0)
    if _name(config) == "lamb" and isinstance(scale, int | float) and scale != 0:
        message = "DeepSpeed takes Lamb with dynamic loss scaling only, even where fp16 is off"
        yield config.finding(LOSS_SCALE, "fp16.loss_scale", message, "0", on_value=True)


def _updates_on_cpu(config: Configuration) -> bool:
    return bool(config.stage) and config.zero("offload_optimizer.device") in ("cpu", "nvme")


def _name(config: Configuration) -> str:
    """The optimizer in small letters; empty when the script makes one."""
    given = config.section("optimizer").get("type")
    return given.lower() if isinstance(given, str) else ""


def _is_known(config: Configuration) -> bool:
    return _name(config) in (name.lower() for name in (*_DEEPSPEED, *_TORCH))


CHECKS = (known_type, arguments, untested, with_offload, force_cpu_optimizer, muon, lamb_loss_scale)
