"""Completion: the values that a shell offers for an option, asked for when Tab is pressed."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def _beginning(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """A completion of typer's: the names that begin with what was typed."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete


def _models() -> Iterable[str]:
    from dsplan.catalogue import decoder_names, preset_names

    return (*preset_names(), *decoder_names())


def _accelerators() -> Iterable[str]:
    from dsplan.catalogue import accelerators as catalogued

    return [accelerator.name for accelerator in catalogued()]


def _attentions() -> Iterable[str]:
    from dsplan.model import ATTENTIONS
    from dsplan.modelfile import FLASH_ATTENTION

    return (*ATTENTIONS, FLASH_ATTENTION)


def _activations() -> Iterable[str]:
    from dsplan.model import ACTIVATIONS

    return ACTIVATIONS


def _precisions() -> Iterable[str]:
    from dsplan.workload import PRECISIONS

    return PRECISIONS


def _optimizers() -> Iterable[str]:
    from dsplan.workload import OPTIMIZERS

    return OPTIMIZERS


def _checkpointings() -> Iterable[str]:
    from dsplan.workload import ACTIVATION_CHECKPOINTING

    return ACTIVATION_CHECKPOINTING


def _plans() -> Iterable[str]:
    from dsplan.model import ModelShape
    from dsplan.strategies import standard_plans
    from dsplan.workload import Workload

    smallest = ModelShape(num_layers=1, num_attention_heads=1, hidden_size=8)  # every model has the same plans
    return [plan.name for plan in standard_plans(smallest, Workload(micro_batch_size=1, sequence_length=8))]


def _consumers() -> Iterable[str]:
    from dsplan.dsconfig.consumers import CONSUMERS

    return CONSUMERS


def _formats() -> Iterable[str]:
    from dsplan.dsconfig.formats import FORMATS

    return FORMATS


def _verdicts() -> Iterable[str]:
    from dsplan.cli.gate import GATES

    return GATES


models = _beginning(_models)
accelerators = _beginning(_accelerators)
attentions = _beginning(_attentions)
activations = _beginning(_activations)
precisions = _beginning(_precisions)
optimizers = _beginning(_optimizers)
checkpointings = _beginning(_checkpointings)
plans = _beginning(_plans)
consumers = _beginning(_consumers)
formats = _beginning(_formats)
verdicts = _beginning(_verdicts)
