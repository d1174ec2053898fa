"""Settings of ``zero_optimization`` and the stage that they are for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dsplan.check.configuration import ZERO, Configuration
from dsplan.check.finding import ERROR, NOTE, WARNING, Finding, Rule
from dsplan.check.known import known_keys
from dsplan.dsconfig.engine_rules import Engine, allgather_alignment, secondary_partition
from dsplan.dsconfig.stages import stages_of

IGNORED = Rule(
    id="DS401", name="ignored-at-stage", severity=WARNING, summary="The chosen ZeRO stage does not read the key."
)
REFUSED = Rule(
    id="DS402",
    name="refused-at-stage",
    severity=ERROR,
    summary="DeepSpeed stops at this setting with the chosen stage.",
)
RULES = (IGNORED, REFUSED)


def ignored(config: Configuration) -> Iterator[Finding]:
    """Keys that the chosen stage does not read: a warning where they ask for something, a note where they do not.

    Source: ``runtime/engine.py`` (``_configure_zero_optimizer``) and ``runtime/zero/partition_parameters.py``
    (``Init``, which stage 3 alone uses).
    """
    stage = config.stage
    if stage is None:
        return
    for key, value in config.section(ZERO).items():
        stages = stages_of(key)
        if stages is None or stage in stages:
            continue
        given = "" if config.has(f"{ZERO}.stage") else ", since none is given"
        message = f"the stage is {stage}{given}, which ignores {key}: only stage {_words(stages)} reads it"
        instead = f'"stage": {_words(stages)}'
        severity = WARNING if _asks(key, value) else NOTE
        yield config.finding(IGNORED, f"{ZERO}.{key}", message, f"{instead}, or remove {key}", severity=severity)


def offload_ignored(config: Configuration) -> Iterator[Finding]:
    """Stages 1 and 2 keep offloaded states in host memory, whatever the device (``stage_1_and_2.py``, ``__init__``)."""
    if config.stage in (1, 2) and config.zero("offload_optimizer.device") == "nvme":
        message = f"stage {config.stage} offloads the optimizer to host memory: only stage 3 goes to NVMe"
        yield config.finding(
            IGNORED, f"{ZERO}.offload_optimizer.device", message, '"cpu", or "stage": 3', on_value=True
        )


def refused(config: Configuration) -> Iterator[Finding]:
    """Combinations that stop DeepSpeed.

    Source: ``runtime/zero/config.py`` (``offload_ratio_check``, ``compute_grad_norm_valid``), ``runtime/config.py``
    (``_do_error_check``) and ``runtime/zero/stage_1_and_2.py`` (``__init__``).
    """
    stage = config.stage
    if stage is None:
        return
    ratio = config.zero("offload_optimizer.ratio", 1.0)
    if stage != 3 and isinstance(ratio, int | float) and ratio < 1:
        path = f"{ZERO}.offload_optimizer.ratio"
        yield config.finding(
            REFUSED, path, f"a ratio below 1 needs stage 3; the stage is {stage}", "1.0", on_value=True
        )
    yield from _sum(config, stage)
    if config.zero("compute_grad_norm") is False:
        path = f"{ZERO}.compute_grad_norm"
        if stage in (0, 3):
            yield config.finding(REFUSED, path, f"stage {stage} needs the gradient's norm", "true", on_value=True)
        elif config.get("gradient_clipping", 1.0) != 0:
            message = (
                "without the gradient's norm there is no clipping, and gradient_clipping is 1.0 unless it is given"
            )
            yield config.finding(REFUSED, path, message, '"gradient_clipping": 0 at the top level', on_value=True)
        elif config.zero("offload_optimizer.device", "none") != "none":
            message = "offload_optimizer needs the gradient's norm"
            yield config.finding(REFUSED, path, message, "true", on_value=True)


def sizes(config: Configuration) -> Iterator[Finding]:
    """Sizes at which the engine of the stage stops: :func:`secondary_partition`, which ranks decide, and
    :func:`allgather_alignment` of :mod:`dsplan.dsconfig.engine_rules`, with the sources.
    """
    if not isinstance(config.get(ZERO), dict) or config.stage is None:
        return
    engine = Engine(
        document=config.document,
        precision="bf16" if config.get("bf16.enabled") is True else "fp32",
        world_size=config.run.world_size or 1,
        checkpointing="none",
    )
    for key, rule in (("zero_hpz_partition_size", secondary_partition), ("allgather_bucket_size", allgather_alignment)):
        value = config.zero(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            for refusal in rule(engine):
                yield config.finding(REFUSED, refusal.key, refusal.message, refusal.instead, on_value=True)


def _sum(config: Configuration, stage: int) -> Iterator[Finding]:
    """What cannot sum gradients."""
    if config.get("gradient_allreduce_op") == "sum":
        refusing = (
            ("stage 3", stage == 3),
            ("ZenFlow", config.zero("zenflow") is not None),
            ("DeepCompile", config.get("compile.deepcompile") is True),
        )
        for name, present in refusing:
            if present:
                message = f"{name} does not sum gradients"
                yield config.finding(REFUSED, "gradient_allreduce_op", message, '"mean"', on_value=True)


def _asks(key: str, value: Any) -> bool:
    """Whether the setting asks for something that its absence would not give."""
    if isinstance(value, dict) and key in ("offload_optimizer", "offload_param"):
        return bool(value.get("device", "none") != "none")
    default = known_keys(ZERO).get(key, {}).get("default")
    off = key == "zero_hpz_partition_size" and value in (0, 1)
    return not off and value not in (default, None, "auto", False)


def _words(stages: tuple[int, ...]) -> str:
    words = [str(stage) for stage in stages]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


CHECKS = (ignored, offload_ignored, refused, sizes)
