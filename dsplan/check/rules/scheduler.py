"""The learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterator

from dsplan.check.configuration import Configuration
from dsplan.check.finding import ERROR, WARNING, Finding, Rule
from dsplan.check.known import required_params, scheduler_names
from dsplan.errors import nearest

UNKNOWN = Rule(
    id="DS511",
    name="unknown-scheduler",
    severity=ERROR,
    summary="Neither DeepSpeed nor torch.optim.lr_scheduler has the scheduler.",
)
NO_STEPS = Rule(
    id="DS512",
    name="scheduler-without-steps",
    severity=ERROR,
    summary="The scheduler lacks an argument that it cannot do without, such as the number of steps.",
)
WARMUP = Rule(
    id="DS513", name="long-warmup", severity=WARNING, summary="The warm-up is longer than the whole schedule."
)
RULES = (UNKNOWN, NO_STEPS, WARMUP)

#: Arguments without default: ``runtime/lr_schedules.py`` (OneCycle) and torch.optim.lr_scheduler.
_REQUIRED = {
    "OneCycle": ("cycle_min_lr", "cycle_max_lr"),
    "CosineAnnealingLR": ("T_max",),
    "CosineAnnealingWarmRestarts": ("T_0",),
    "CyclicLR": ("base_lr", "max_lr"),
    "ExponentialLR": ("gamma",),
    "MultiStepLR": ("milestones",),
    "OneCycleLR": ("max_lr",),
    "StepLR": ("step_size",),
}
#: In torch too, but of no use in a file: they take functions or other schedules, or the loss.
_TORCH = ("ReduceLROnPlateau", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler")


def known_type(config: Configuration) -> Iterator[Finding]:
    """DeepSpeed ``runtime/engine.py`` (``_scheduler_from_config``: exact names)."""
    given = config.section("scheduler").get("type")
    if given is None or given == "auto" or given in (*scheduler_names(), *_TORCH):
        return
    near = nearest(str(given), scheduler_names(), limit=1)
    message = f"there is no scheduler {given}"
    yield config.finding(UNKNOWN, "scheduler.type", message, f'"{near[0]}"' if near else '"WarmupLR"', on_value=True)


def steps(config: Configuration) -> Iterator[Finding]:
    """Arguments without default: DeepSpeed ``runtime/lr_schedules.py`` and torch.optim.lr_scheduler."""
    name, params = config.section("scheduler").get("type"), config.get("scheduler.params")
    if not isinstance(name, str) or not isinstance(params, dict) or not config.complete:
        return
    for key in (*required_params(name), *_REQUIRED.get(name, ())):
        if key not in params:
            message = f"{name} needs {key}, and DeepSpeed stops without"
            yield config.finding(NO_STEPS, f"scheduler.params.{key}", message, f'"{key}": ...')
    if name == "OneCycleLR" and not ({"total_steps"} & params.keys() or {"epochs", "steps_per_epoch"} <= params.keys()):
        message = "OneCycleLR needs the number of steps"
        yield config.finding(NO_STEPS, "scheduler.params", message, '"total_steps": ...')


def warmup(config: Configuration) -> Iterator[Finding]:
    """DeepSpeed ``runtime/lr_schedules.py`` (``WarmupDecayLR.__init__`` warns)."""
    params = config.section("scheduler.params")
    warm, total = params.get("warmup_num_steps"), params.get("total_num_steps")
    if isinstance(warm, int | float) and isinstance(total, int | float) and warm > total:
        message = f"warmup_num_steps {warm} is more than total_num_steps {total}: the warm-up never ends"
        instead = f"at most {total}"
        yield config.finding(WARMUP, "scheduler.params.warmup_num_steps", message, instead, on_value=True)


CHECKS = (known_type, steps, warmup)
