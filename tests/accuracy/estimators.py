"""The estimators that are held against the same records: dsplan's formulas and what people use today."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsplan.comparison import Difference
from tests.accuracy.records import Compared
from tests.baselines import Baseline, deepspeed_estimate, plain_formula
from tests.dry_comparison import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """Something that predicts memory.

    Attributes:
        title: as the tables name it.
        about: what its numbers are, and how it was taken where it does not say; Markdown.
        peak: of allocated memory over the steps, on the worst rank.
        states: of allocated memory at the end of a steady backward pass; None where no such step was measured.
        host: of a node's host memory; None where it says nothing.
    """

    title: str
    about: str
    peak: Callable[[Compared], Value]
    states: Callable[[Compared], Value | None]
    host: Callable[[Compared], Value | None]


def _formulas_host(found: Compared) -> Value | None:
    return None if found.host is None else Value(found.name, "", found.host)


def _deepspeed(found: Compared) -> Baseline:
    return deepspeed_estimate(found.model, found.plan, found.world_size)


def _deepspeed_host(found: Compared) -> Value | None:
    predicted = _deepspeed(found).host_bytes
    if found.host is None or predicted is None:
        return None
    return Value(found.name, "", Difference(predicted_bytes=predicted, measured_bytes=found.host.measured_bytes))


def _plain(found: Compared) -> Baseline:
    return plain_formula(found.plan, found.model.num_parameters, found.world_size)


def _peak(found: Compared, predicted: Baseline) -> Value:
    return _value(found, predicted, found.comparison.peak_allocated)


def _states(found: Compared, predicted: Baseline) -> Value | None:
    return None if found.states is None else _value(found, predicted, found.states)


def _value(found: Compared, predicted: Baseline, measured: Difference) -> Value:
    return Value(
        found.name,
        "",
        Difference(predicted_bytes=predicted.device_bytes, measured_bytes=measured.measured_bytes),
    )


FORMULAS = Estimator(
    title="`dsplan estimate`",
    about="""The formulas, without a GPU and without torch, as `estimate --plan`, `--ladder` and `verify` give them, and
    the table of all plans for small models: what torch's allocator counts, by a replay of the walk's requests.""",
    peak=lambda found: found.peak,
    states=lambda found: None if found.states is None else Value(found.name, "", found.states),
    host=_formulas_host,
)
TABLE = Estimator(
    title="the same, blocks not replayed",
    about="What the table of all plans says of larger models: the formulas alone.",
    peak=lambda found: Value(found.name, "", found.peak_of_tensors),
    states=lambda _: None,
    host=lambda _: None,
)
DEEPSPEED = Estimator(
    title="DeepSpeed's estimator",
    about="""`estimate_zero2_model_states_mem_needs` (stages 1 and 2; stage 0 with one GPU, where nothing is
    partitioned) and `estimate_zero3_model_states_mem_needs` (stage 3, with `zero_init`), as DeepSpeed 0.19.8 computes
    them. DeepSpeed has none for stages 0 and 1: they are taken in this way, and so is fp32, which it does not know. It
    estimates the states of a model and has no activations.""",
    peak=lambda found: _peak(found, _deepspeed(found)),
    states=lambda found: _states(found, _deepspeed(found)),
    host=_deepspeed_host,
)
PLAIN = Estimator(
    title="2Ψ + 2Ψ + KΨ",
    about="""Parameters, gradients and optimizer states (K = 12 for Adam in mixed precision), each divided by the ranks
    where the stage partitions it (ZeRO, arXiv:1910.02054, section 3.1); in fp32 4Ψ + 4Ψ + 8Ψ. What is offloaded is not
    counted: with both on the CPU nothing is left, and the error is -100 %. It has no activations either.""",
    peak=lambda found: _peak(found, _plain(found)),
    states=lambda found: _states(found, _plain(found)),
    host=lambda _: None,
)
ESTIMATORS = (FORMULAS, TABLE, DEEPSPEED, PLAIN)
