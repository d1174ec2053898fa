"""What a framework makes of a configuration before DeepSpeed sees it: ``"auto"``, and what the file leaves out.

The rules are those of transformers 5.23.0 (``integrations/deepspeed.py``, ``HfTrainerDeepSpeedConfig``),
accelerate 1.15.0 (``utils/dataclasses.py``, ``DeepSpeedPlugin``; ``accelerator.py``, ``_prepare_deepspeed``), which
the Trainer goes through as well, and Lightning (``strategies/deepspeed.py``, ``DeepSpeedStrategy``). Where the script
would give an argument and nothing is known of it, the framework's own default stands: that is what would run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dsplan.dsconfig.auto import AUTO, every_auto, require_no_auto
from dsplan.dsconfig.batch import ACCUMULATION, MICRO_BATCH, TRAIN_BATCH
from dsplan.dsconfig.consumers import CONSUMER_NAMES, CONSUMERS, DEEPSPEED, HF, LIGHTNING
from dsplan.dsconfig.edit import copied
from dsplan.errors import InputError, choice
from dsplan.model import ModelShape

#: Stands for the length of a training that is not known: it reaches the schedule only, which holds no memory.
NOMINAL_STEPS = 10_000

_NO_MEMORY = "changes no memory"
_TRANSFORMERS, _ACCELERATE_NAME, _LIGHTNING_NAME = "transformers", "accelerate", "Lightning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What the training script tells the framework; None is "nothing", and the framework's default stands.

    Attributes:
        model: its hidden size makes the bucket sizes.
        micro_batch_size: samples of one device's batch.
        gradient_accumulation_steps: micro batches of one optimizer step.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        training_steps: optimizer steps of the whole training.
    """

    model: ModelShape | None = None
    micro_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    precision: str | None = None
    training_steps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """A value that is not the file's own.

    Attributes:
        key: dotted.
        before: what the file has: ``"auto"``, another value, or None where the key is not there.
        value: what DeepSpeed gets.
        why: where the value comes from.
        by: the framework or the flag that sets it.
    """

    key: str
    before: Any
    value: Any
    why: str
    by: str

    @property
    def change(self) -> str:
        """``KEY: BEFORE -> VALUE (WHY)``."""
        before = "not given" if self.before is None else self.before if self.before == AUTO else _show(self.before)
        return f"{self.key}: {before} -> {_show(self.value)} ({self.why})"

    @property
    def source(self) -> str:
        """``as transformers does``, or ``by --micro-batch-size``."""
        return f"by {self.by}" if self.by.startswith("--") else f"as {self.by} does"

    def __str__(self) -> str:
        return f"{self.change}, {self.source}"


def resolve(
    document: Mapping[str, Any], consumer: str, script: Script, world_size: int
) -> tuple[dict[str, Any], tuple[Filled, ...]]:
    """``document`` as ``consumer`` hands it to DeepSpeed on ``world_size`` ranks, and what it filled in.

    Raises:
        InputError: an unknown consumer; ``"auto"`` that nobody fills in, or whose source (the model) is not
            given; a file that the framework refuses.
    """
    consumer = choice("--for", consumer, CONSUMERS)
    if consumer == DEEPSPEED:
        require_no_auto(document)
        return dict(document), ()
    work = _Work(document, script, world_size)
    if consumer == LIGHTNING:
        _lightning(work)
    else:
        (_trainer if consumer == HF else _accelerate)(work)
        _require_resolved(work.document, consumer)
    return work.document, tuple(work.filled)


class _Work:
    """The document under way, and the record of what was filled in."""

    def __init__(self, document: Mapping[str, Any], script: Script, world_size: int) -> None:
        self.document = copied(document)
        self.script = script
        self.world_size = world_size
        self.filled: list[Filled] = []

    def auto(self, key: str, value: Any | Callable[[], Any], why: str, by: str) -> None:
        """Put ``value`` in the place of ``"auto"`` at the dotted ``key``; nothing where the key holds anything else."""
        section, name = self._section(key)
        if section is not None and section.get(name) == AUTO:
            section[name] = value() if callable(value) else value
            self.filled.append(Filled(key=key, before=AUTO, value=section[name], why=why, by=by))

    def absent(self, key: str, value: Any, why: str, by: str) -> None:
        """Set a key of the top level that is not there."""
        if key not in self.document:
            self.document[key] = value
            self.filled.append(Filled(key=key, before=None, value=value, why=why, by=by))

    def get(self, key: str) -> Any:
        section, name = self._section(key)
        return None if section is None else section.get(name)

    def _section(self, key: str) -> tuple[dict[str, Any] | None, str]:
        *sections, name = key.split(".")
        found: Any = self.document
        for part in sections:
            found = found.get(part)
            if not isinstance(found, dict):
                return None, name
        return found, name


def _trainer(work: _Work) -> None:
    """``trainer_config_process`` and ``trainer_config_finalize``; then accelerate, which the Trainer works through."""
    script, by = work.script, _TRANSFORMERS
    micro = _given(script.micro_batch_size, "--micro-batch-size", 8, "TrainingArguments.per_device_train_batch_size")
    steps = _given(
        script.gradient_accumulation_steps,
        "--gradient-accumulation-steps",
        1,
        "TrainingArguments.gradient_accumulation_steps",
    )
    work.auto(MICRO_BATCH, *micro, by)
    work.auto(ACCUMULATION, *steps, by)
    # The Trainer multiplies its own arguments; where the file gives a part itself, they have to agree with it.
    parts = [work.get(key) or argument[0] for key, argument in ((MICRO_BATCH, micro), (ACCUMULATION, steps))]
    work.auto(TRAIN_BATCH, lambda: work.world_size * parts[0] * parts[1], _BATCH_WHY, by)
    work.auto("gradient_clipping", 1.0, _default("TrainingArguments.max_grad_norm"), by)
    work.auto("optimizer.params.lr", 5e-5, _default("TrainingArguments.learning_rate"), by)
    work.auto("optimizer.params.betas", [0.9, 0.999], _default("TrainingArguments.adam_beta1 and adam_beta2"), by)
    work.auto("optimizer.params.eps", 1e-8, _default("TrainingArguments.adam_epsilon"), by)
    work.auto("optimizer.params.weight_decay", 0.0, _default("TrainingArguments.weight_decay"), by)
    work.auto("scheduler.params.warmup_min_lr", 0, "no argument of the Trainer", by)
    work.auto("scheduler.params.warmup_max_lr", 5e-5, _default("TrainingArguments.learning_rate"), by)
    for precision in ("fp16", "bf16"):
        value, why = _precision(script, precision, f"TrainingArguments.{precision}")
        work.auto(f"{precision}.enabled", value, why, by)
    _plugin(work)
    _hidden_sizes(work, by)
    work.auto("scheduler.params.total_num_steps", *_training_steps(script), by)
    work.auto("scheduler.params.warmup_num_steps", 1, "TrainingArguments.warmup_steps is 0, and at least 1", by)
    if "optimizer" not in work.document:  # deepspeed_optim_sched
        work.absent("zero_allow_untested_optimizer", True, f"the Trainer's own optimizer, {_NO_MEMORY}", by)


def _accelerate(work: _Work) -> None:
    """``DeepSpeedPlugin.__post_init__``, ``set_mixed_precision`` and ``Accelerator._prepare_deepspeed``."""
    script, by = work.script, _ACCELERATE_NAME
    _plugin(work)
    for precision in ("fp16", "bf16"):
        value, why = _precision(script, precision, "mixed_precision")
        work.auto(f"{precision}.enabled", value, why, by)
    micro = _given(script.micro_batch_size, "--micro-batch-size", 1, "DataLoader.batch_size")
    steps = _given(script.gradient_accumulation_steps, "--gradient-accumulation-steps", 1, "Accelerator's")
    work.auto(MICRO_BATCH, *micro, by)
    work.auto(ACCUMULATION, *steps, by)
    if work.get(MICRO_BATCH) is not None:
        work.auto(TRAIN_BATCH, lambda: work.get(MICRO_BATCH) * work.get(ACCUMULATION) * work.world_size, _BATCH_WHY, by)
    work.auto("gradient_clipping", 1.0, "accelerate's default", by)
    _hidden_sizes(work, by)
    work.auto("optimizer.params.lr", 1e-3, _default("DummyOptim.lr"), by)
    work.auto("optimizer.params.weight_decay", 0, _default("DummyOptim.weight_decay"), by)
    work.auto("scheduler.params.warmup_min_lr", 0, "accelerate's default", by)
    work.auto("scheduler.params.warmup_max_lr", 1e-3, _default("DummyOptim.lr"), by)
    work.auto("scheduler.params.warmup_num_steps", 1, "DummyScheduler.warmup_num_steps is 0, and at least 1", by)
    work.auto("scheduler.params.total_num_steps", *_training_steps(script), by)
    if "optimizer" not in work.document:
        work.absent("zero_allow_untested_optimizer", True, f"the script's own optimizer, {_NO_MEMORY}", by)


def _plugin(work: _Work) -> None:
    """``DeepSpeedPlugin.__post_init__`` and ``set_mixed_precision``, which both frameworks go through."""
    by = _ACCELERATE_NAME
    if not isinstance(work.document.get("zero_optimization"), dict):
        raise InputError(
            'zero_optimization: the section is missing, and accelerate stops without it; add "stage": 0 to 3'
        )
    work.absent(ACCUMULATION, 1, "1 where the file has none, whatever train_batch_size says", by)
    work.auto("zero_optimization.stage", 2, "accelerate's default", by)
    for section in ("offload_optimizer", "offload_param"):
        for name in ("device", "nvme_path"):
            work.auto(f"zero_optimization.{section}.{name}", "none", "accelerate's default", by)
    key = "zero_optimization.stage3_gather_16bit_weights_on_model_save"
    work.auto(key, False, f"accelerate's default, {_NO_MEMORY}", by)
    precision = work.script.precision
    others = {"fp16": "bf16", "bf16": "fp16"}
    if precision in others and work.get(f"{others[precision]}.enabled") is not True:
        enabled = {"enabled": True, "auto_cast": True} if precision == "fp16" else {"enabled": True}
        work.absent(precision, enabled, "mixed_precision of --precision", by)


def _hidden_sizes(work: _Work, by: str) -> None:
    """``trainer_config_finalize`` fills the last two at stage 3 only; below it accelerate does, in the same way."""
    zero = "zero_optimization."
    work.auto(f"{zero}reduce_bucket_size", lambda: _hidden(work, 1.0), "hidden size squared", by)
    stage3 = by if work.get(f"{zero}stage") == 3 else _ACCELERATE_NAME
    work.auto(f"{zero}stage3_prefetch_bucket_size", lambda: _hidden(work, 0.9), "0.9 x hidden size squared", stage3)
    work.auto(f"{zero}stage3_param_persistence_threshold", lambda: 10 * _width(work), "10 x hidden size", stage3)


def _lightning(work: _Work) -> None:
    """``_format_config``: what the file leaves out comes from the Trainer; ``"auto"`` is nothing to Lightning."""
    script, by = work.script, _LIGHTNING_NAME
    autos = every_auto(work.document)
    if autos:
        raise InputError(f'"auto" in {", ".join(autos)}: Lightning does not fill it in; give the value')
    if ACCUMULATION in work.document:
        raise InputError(
            f"{ACCUMULATION}: Lightning refuses a file that has it; remove it and pass accumulate_grad_batches"
        )
    steps = _given(
        script.gradient_accumulation_steps, "--gradient-accumulation-steps", 1, "Trainer.accumulate_grad_batches"
    )
    micro = _given(script.micro_batch_size, "--micro-batch-size", 1, "the DataLoader's batch_size")
    work.absent(ACCUMULATION, *steps, by)
    work.absent(MICRO_BATCH, *micro, by)
    work.absent("gradient_clipping", 0.0, _default("Trainer.gradient_clip_val"), by)
    if script.precision in ("fp16", "bf16"):
        work.absent(script.precision, {"enabled": True}, "Trainer.precision of --precision", by)


def _require_resolved(document: Mapping[str, Any], consumer: str) -> None:
    """``DeepSpeedPlugin.fill_match`` raises for every ``"auto"`` that it has no value for."""
    keys = every_auto(document)
    if keys:
        raise InputError(
            f'"auto" in {", ".join(keys)}: {CONSUMER_NAMES[consumer]} has no value for it and stops there; '
            "give the value"
        )


_BATCH_WHY = "micro batch x accumulation steps x ranks"


def _given(value: int | None, flag: str, default: int, source: str) -> tuple[int, str]:
    """The script's value and where it is from, or the framework's default."""
    return (default, f"{_default(source)}; {flag} gives another") if value is None else (value, flag)


def _precision(script: Script, precision: str, source: str) -> tuple[bool, str]:
    if script.precision is None:
        return False, f"{_default(source)}; --precision gives another"
    return script.precision == precision, f"--precision {script.precision}"


def _training_steps(script: Script) -> tuple[int, str]:
    if script.training_steps is None:
        return NOMINAL_STEPS, f"the number of training steps, which is not known here; {_NO_MEMORY}"
    return script.training_steps, "the number of training steps"


def _default(source: str) -> str:
    return f"default of {source}"


def _hidden(work: _Work, factor: float) -> int:
    return int(factor * _width(work) * _width(work))


def _width(work: _Work) -> int:
    if work.script.model is None:
        raise InputError('zero_optimization: "auto" stands for a multiple of the hidden size; name the model')
    return work.script.model.hidden_size


def _show(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return json.dumps(value)
