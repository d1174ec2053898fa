"""fp16 and bf16, and what goes with them."""

from __future__ import annotations

from collections.abc import Iterator

from dsplan.check.configuration import Configuration
from dsplan.check.finding import ERROR, WARNING, Finding, Rule
from dsplan.dsconfig.not_modelled import same_dtype

BOTH = Rule(id="DS311", name="fp16-and-bf16", severity=ERROR, summary="fp16 and bf16 are both enabled.")
DTYPE = Rule(
    id="DS312", name="conflicting-dtype", severity=ERROR, summary="data_types.param_dtype contradicts fp16 and bf16."
)
MASTER = Rule(
    id="DS313",
    name="master-weights",
    severity=ERROR,
    summary="Master weights or optimizer states in 16 bits, without what they need.",
)
OFF = Rule(
    id="DS314",
    name="precision-off",
    severity=WARNING,
    summary="A section of fp16 or bf16 settings without enabled: true, so that training is in fp32.",
)
RULES = (BOTH, DTYPE, MASTER, OFF)


def both(config: Configuration) -> Iterator[Finding]:
    """DeepSpeed ``runtime/config.py`` (``_initialize_params``: both enabled is an AssertionError)."""
    if _enabled(config, "fp16") and _enabled(config, "bf16"):
        message = "fp16 and bf16 are both enabled; DeepSpeed refuses that"
        yield config.finding(BOTH, "bf16.enabled", message, "false for one of them", on_value=True)


def param_dtype(config: Configuration) -> Iterator[Finding]:
    """DeepSpeed ``runtime/engine.py`` (``_assert_valid_mixed_precision_config``)."""
    wanted = config.get("data_types.param_dtype")
    if not isinstance(wanted, str) or _undecided(config):
        return
    precision = "fp16" if _enabled(config, "fp16") else "bf16" if _enabled(config, "bf16") else "fp32"
    if not same_dtype(wanted, precision):
        message = f"param_dtype {wanted} contradicts the fp16 and bf16 sections, which ask for {precision}"
        yield config.finding(DTYPE, "data_types.param_dtype", message, f'"{precision}"', on_value=True)


def master_weights(config: Configuration) -> Iterator[Finding]:
    """DeepSpeed ``runtime/config.py`` (``_do_error_check``)."""
    for path in (
        "fp16.fp16_master_weights_and_grads",
        "bf16.bf16_master_weights_and_grads",
        "bf16.bf16_optimizer_states",
    ):
        if config.get(path) is not True:
            continue
        if config.stage == 0:
            yield config.finding(MASTER, path, f"{path} needs ZeRO; the stage is 0", "stage 1, 2 or 3")
        if path.endswith("optimizer_states") and config.get("bf16.bf16_master_weights_and_grads") is not True:
            message = f"{path} needs bf16_master_weights_and_grads"
            yield config.finding(MASTER, path, message, '"bf16_master_weights_and_grads": true beside it')


def switched_off(config: Configuration) -> Iterator[Finding]:
    """DeepSpeed ``runtime/precision_config.py``: ``enabled`` is false unless it is given."""
    for name in ("fp16", "bf16"):
        settings = config.section(name)
        if config.complete and settings and "enabled" not in settings:
            message = f"the section {name} has no enabled, so {name} is off"
            yield config.finding(OFF, name, message, '"enabled": true in it')


def _enabled(config: Configuration, name: str) -> bool:
    value = config.get(f"{name}.enabled")
    if name == "bf16" and not config.has("bf16"):
        value = config.get("bfloat16.enabled")
    return value is True or (isinstance(value, str) and value.lower() == "true")


def _undecided(config: Configuration) -> bool:
    return "auto" in (config.get("fp16.enabled"), config.get("bf16.enabled"))


CHECKS = (both, param_dtype, master_weights, switched_off)
