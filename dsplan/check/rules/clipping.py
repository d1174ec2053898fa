"""Gradient clipping that nobody asked for, or that does not reach DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator

from dsplan.check.configuration import Configuration
from dsplan.check.finding import NOTE, Finding, Rule
from dsplan.check.rules.keys import MISSPELT, closest
from dsplan.dsconfig.consumers import ACCELERATE, DEEPSPEED, HF

DEFAULT = Rule(
    id="DS321",
    name="clipping-default",
    severity=NOTE,
    summary="gradient_clipping is not given: what clips then depends on DeepSpeed's release, not on the script.",
)
RULES = (DEFAULT,)

_KEY = "gradient_clipping"
#: What people write in its place, which is a finding of its own.
_ELSEWHERE = ("optimizer.params.max_grad_norm", "max_grad_norm", "clip_grad")
_WHOSE = {
    DEEPSPEED: "",
    HF: "max_grad_norm of Hugging Face's Trainer does not reach DeepSpeed, and ",
    ACCELERATE: "accelerator.clip_grad_norm_ clips nothing under DeepSpeed, and ",
}


def default(config: Configuration) -> Iterator[Finding]:
    """The default is 1.0 since DeepSpeed 0.19.3 and was 0, no clipping, before.

    Source: ``runtime/constants.py`` (``GRADIENT_CLIPPING_DEFAULT``) of 0.19.2 and 0.19.3; transformers
    ``integrations/deepspeed.py`` (``fill_match`` sets max_grad_norm in place of ``"auto"`` only) and accelerate
    ``accelerator.py`` (``clip_grad_norm_``: returns DeepSpeed's norm). Lightning fills the key in itself
    (``strategies/deepspeed.py``, ``_format_batch_size_and_grad_accum_config``).
    """
    whose = _WHOSE.get(config.run.consumer)
    if whose is None or not config.complete or closest(_KEY, config.document, MISSPELT):
        return
    if any(config.has(key) for key in _ELSEWHERE):
        return
    message = (
        f"{_KEY} is not given: {whose}DeepSpeed clips the gradient's norm at 1.0 since 0.19.3, and did not clip before"
    )
    instead = f'"{_KEY}": 1.0, or 0 for none' if config.run.consumer == DEEPSPEED else f'"{_KEY}": "auto"'
    yield config.finding(DEFAULT, _KEY, message, instead)


CHECKS = (default,)
