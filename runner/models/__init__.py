"""models: what a verification run trains, built from the model file in its specification."""

from __future__ import annotations

from typing import Any, Protocol

from runner.spec import RunSpec

__all__ = ["Trainee", "trainee_of"]


class Trainee(Protocol):
    """A model that can be built and trained."""

    @property
    def vocab_size(self) -> int:
        """Tokens are below it."""

    def build(self, spec: RunSpec) -> Any:
        """The module, with random weights; at stage 3 under zero.Init unless the specification says otherwise."""

    def loss(self, engine: Any, tokens: Any, targets: Any) -> Any:
        """The loss of one micro batch: ``tokens`` and ``targets`` are (batch, length) int64 on the device."""


def trainee_of(spec: RunSpec) -> Trainee:
    """The model that ``spec`` names: the minGPT that ships with dsplan, one of transformers', or the user's own.

    Call it before the device is opened: what it imports is imported outside a dry run's fake tensors.

    Raises:
        dsplan.errors.MissingExtraError: transformers is needed and not installed.
        dsplan.errors.InputError: a factory that is not here.
    """
    if spec.model.get("model_type", "mingpt") == "mingpt":
        from runner.models.mingpt import MinGpt

        return MinGpt(spec.model)
    if spec.model["model_type"] == "module":
        from runner.models.module import LiveModule

        return LiveModule(spec.model)
    from runner.models.hugging_face import CausalLm

    return CausalLm(spec.model)
