"""The three batch sizes."""

from __future__ import annotations

from collections.abc import Iterator

from dsplan.check.configuration import Configuration
from dsplan.check.finding import ERROR, Finding, Rule
from dsplan.dsconfig.batch import ACCUMULATION, MICRO_BATCH, TRAIN_BATCH, resolve_batch_sizes
from dsplan.dsconfig.consumers import ACCELERATE, DEEPSPEED, LIGHTNING
from dsplan.errors import InputError

BATCH = Rule(
    id="DS301",
    name="batch-sizes",
    severity=ERROR,
    summary="train_batch_size is not micro batch x accumulation steps x ranks.",
)
NO_BATCH = Rule(id="DS302", name="no-batch-size", severity=ERROR, summary="Neither of the two batch sizes is given.")
LIGHTNING_SETS = Rule(
    id="DS303",
    name="lightning-accumulation",
    severity=ERROR,
    summary="Lightning sets gradient_accumulation_steps itself and refuses a file that does.",
)
RULES = (BATCH, NO_BATCH, LIGHTNING_SETS)

_KEYS = (TRAIN_BATCH, MICRO_BATCH, ACCUMULATION)


def batch_sizes(config: Configuration) -> Iterator[Finding]:
    """DeepSpeed ``runtime/config.py`` (``_set_batch_related_parameters``, ``_batch_assertion``)."""
    given = {key: config.get(key) for key in _KEYS if config.get(key) is not None}
    if any(isinstance(value, bool) or not isinstance(value, int) or value < 1 for value in given.values()):
        return  # "auto", or found by another rule
    if TRAIN_BATCH not in given and MICRO_BATCH not in given:
        # Frameworks fill a missing batch size in; a script has to give one to DeepSpeed.
        if config.complete and config.run.consumer == DEEPSPEED:
            message = f"neither {TRAIN_BATCH} nor {MICRO_BATCH} is given; DeepSpeed needs one of them"
            yield config.finding(NO_BATCH, "", message, f'"{MICRO_BATCH}": 1')
        return
    unit = given.get(MICRO_BATCH, 1) * given.get(ACCUMULATION, 1)
    if TRAIN_BATCH in given and len(given) == 3 and given[TRAIN_BATCH] % unit:
        message = (
            f"{TRAIN_BATCH} {given[TRAIN_BATCH]} is no multiple of {MICRO_BATCH} {given[MICRO_BATCH]} x "
            f"{ACCUMULATION} {given[ACCUMULATION]}: no number of ranks makes it right"
        )
        yield config.finding(BATCH, TRAIN_BATCH, message, f"a multiple of {unit}, or leave it out", on_value=True)
        return
    if TRAIN_BATCH in given and given[TRAIN_BATCH] < unit:
        message = f"{TRAIN_BATCH} {given[TRAIN_BATCH]} is less than what one rank takes at once, {unit}"
        yield config.finding(BATCH, TRAIN_BATCH, message, f"a multiple of {unit}, or leave it out", on_value=True)
        return
    ranks = _data_parallel_ranks(config)
    if ranks is not None:
        try:
            resolve_batch_sizes(given, ranks)
        except InputError as error:
            message, _, instead = str(error).rpartition("; ")
            yield config.finding(BATCH, TRAIN_BATCH, message, instead, on_value=True)


def lightning_accumulation(config: Configuration) -> Iterator[Finding]:
    """Lightning ``strategies/deepspeed.py`` (``_format_batch_size_and_grad_accum_config``)."""
    if config.run.consumer == LIGHTNING and config.has(ACCUMULATION):
        message = f"Lightning refuses {ACCUMULATION} in the file"
        yield config.finding(LIGHTNING_SETS, ACCUMULATION, message, "Trainer(accumulate_grad_batches=...)")


def accelerate_zero(config: Configuration) -> Iterator[Finding]:
    """accelerate ``utils/dataclasses.py`` (``DeepSpeedPlugin.__post_init__``)."""
    from dsplan.check.rules.values import MISSING

    if config.run.consumer == ACCELERATE and config.complete and not config.has("zero_optimization"):
        message = "accelerate stops at a file without zero_optimization"
        yield config.finding(MISSING, "", message, '"zero_optimization": {"stage": 0}')


def _data_parallel_ranks(config: Configuration) -> int | None:
    """Ranks that see different data; None when they are not known."""
    ranks = config.run.world_size
    if ranks is None or config.section("pipeline"):
        return None
    for key in ("sequence_parallel_size", "tensor_parallel.autotp_size"):
        size = config.get(key, 1) or 1
        if isinstance(size, bool) or not isinstance(size, int) or size < 1 or ranks % size:
            return None
        ranks //= size
    return ranks


CHECKS = (batch_sizes, lightning_accumulation, accelerate_zero)
