"""Buckets and thresholds beside the model that they are for; silent without ``--model``."""

from __future__ import annotations

from collections.abc import Iterator

from dsplan.check.configuration import ZERO, Configuration
from dsplan.check.finding import NOTE, WARNING, Finding, Rule
from dsplan.units import MIB, format_bytes, format_count

LARGE_BUCKET = Rule(
    id="DS801",
    name="large-bucket",
    severity=WARNING,
    summary="A bucket that is larger than the model, or takes a large part of the device: it is allocated in full.",
)
WHOLE_MODEL = Rule(
    id="DS802",
    name="gathers-everything",
    severity=WARNING,
    summary="A threshold that keeps the whole model gathered, so that stage 3 saves nothing.",
)
RULES = (LARGE_BUCKET, WHOLE_MODEL)

#: Elements of a reduce bucket unless another number is given (``runtime/zero/config.py``).
DEFAULT_BUCKET = 500_000_000
#: A bucket that is too large by less than this is not worth a word.
WORTH_BYTES = 16 * MIB
#: The part of a device that a bucket may take.
_LARGEST_SHARE = 0.25


def reduce_bucket(config: Configuration) -> Iterator[Finding]:
    """The reduce bucket is allocated in full however small the model is.

    Source: ``runtime/zero/stage_1_and_2.py`` (``setup_buckets``: two with overlap_comm) and
    ``runtime/zero/stage3.py`` (``_setup_for_real_optimizer``: one).
    """
    model, stage = config.run.model, config.stage
    size = config.zero("reduce_bucket_size", DEFAULT_BUCKET)
    if model is None or not stage or not isinstance(size, int | float) or not has_bucket(config, stage):
        return
    path = f"{ZERO}.reduce_bucket_size"
    if not config.complete and not config.has(path):
        return
    given = "" if config.has(path) else ", DeepSpeed's default,"
    count = 2 if stage < 3 and config.zero("overlap_comm") is True else 1
    element = element_bytes(config)
    cost = int(size) * element * count
    words = f"{int(size):,} elements{given} {'are two buckets of' if count == 2 else 'are'}"
    bytes_in = format_bytes(int(size) * element)
    largest = model.num_parameters
    if size > largest and cost - largest * element * count >= WORTH_BYTES:
        message = (
            f"reduce_bucket_size: {words} {bytes_in} in {dtype(config)}, allocated in full, for a model of "
            f"{format_count(largest)} parameters"
        )
        yield config.finding(LARGE_BUCKET, path, message, f'"reduce_bucket_size": {_fitting(largest)}')
        return
    cluster = config.run.cluster
    usable = None if cluster is None or cluster.accelerator is None else cluster.accelerator.usable_bytes
    if usable and cost > _LARGEST_SHARE * usable:
        message = (
            f"reduce_bucket_size: {words} {bytes_in} in {dtype(config)}, {cost / usable:.0%} of the device's "
            f"{format_bytes(usable)}"
        )
        yield config.finding(LARGE_BUCKET, path, message, f"at most {int(_LARGEST_SHARE * usable / element / count):,}")


def persistence(config: Configuration) -> Iterator[Finding]:
    """Parameters below the threshold are never partitioned (``runtime/zero/parameter_offload.py``, mark_persistent)."""
    model = config.run.model
    if model is None or config.stage != 3:
        return
    for key in ("stage3_param_persistence_threshold", "param_persistence_threshold"):
        size = config.zero(key)
        largest = max(parameter.numel for parameter in model.parameters)
        if isinstance(size, int | float) and not isinstance(size, bool) and size >= largest:
            cost = format_bytes(model.num_parameters * element_bytes(config))
            message = f"{key} {int(size):,} is above the largest parameter ({largest:,}): all {cost} stay on every rank"
            yield config.finding(WHOLE_MODEL, f"{ZERO}.{key}", message, f"{10 * model.hidden_size}", on_value=True)


def live_parameters(config: Configuration) -> Iterator[Finding]:
    """Stage 3 gathers up to this many before it releases (``runtime/zero/partitioned_param_coordinator.py``)."""
    model = config.run.model
    if model is None or config.stage != 3:
        return
    for key in ("stage3_max_live_parameters", "stage3_prefetch_bucket_size"):
        size = config.zero(key)
        if isinstance(size, int | float) and not isinstance(size, bool) and size >= model.num_parameters:
            cost = format_bytes(model.num_parameters * element_bytes(config))
            message = f"{key} {int(size):,} lets the whole model be gathered at once: {cost}"
            yield config.finding(
                WHOLE_MODEL, f"{ZERO}.{key}", message, f"less than {model.num_parameters:,}", severity=NOTE,
                on_value=True,
            )  # fmt: skip


def element_bytes(config: Configuration) -> int:
    """Bytes of one element of the model and its buckets."""
    return 4 if dtype(config) == "fp32" else 2


def dtype(config: Configuration) -> str:
    """``bf16``, ``fp16`` or ``fp32``: the model's type; what a framework fills in counts as on."""
    for section, name in (("bf16", "bf16"), ("bfloat16", "bf16"), ("fp16", "fp16")):
        if config.get(f"{section}.enabled") in (True, "auto", "true"):
            return name
    return "fp32"


def has_bucket(config: Configuration, stage: int) -> bool:
    """Whether there is a bucket; stages 1 and 2 make one for offload, too (``stage_1_and_2.py``, ``__init__``)."""
    offloads = config.zero("offload_optimizer.device", "none") != "none"
    return config.zero("contiguous_gradients", True) is not False or (stage < 3 and offloads)


def _fitting(parameters: int) -> int:
    """A round number of elements that is not above the model's: the two leading digits of its size."""
    step = max(1, 10 ** (len(str(parameters)) - 2))
    return int(parameters // step * step)


CHECKS = (reduce_bucket, persistence, live_parameters)
