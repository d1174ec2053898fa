"""The value ``"auto"``, which somebody has to fill in."""

from __future__ import annotations

from collections.abc import Iterator

from dsplan.check.configuration import Configuration
from dsplan.check.finding import ERROR, NOTE, WARNING, Finding, Rule
from dsplan.check.known import is_pydantic
from dsplan.dsconfig.auto import auto_keys
from dsplan.dsconfig.consumers import ACCELERATE, CONSUMER_NAMES, HF

AUTO = Rule(
    id="DS601",
    name="unresolved-auto",
    severity=ERROR,
    summary='"auto" where nobody fills it in: DeepSpeed drops it in some sections, which turns fp16 and bf16 off and '
    "sets buckets of 5e8 elements, and stops at it in others.",
)
RESOLVED = Rule(id="DS602", name="resolved-auto", severity=NOTE, summary='"auto" that the framework fills in.')
RULES = (AUTO, RESOLVED)

#: transformers ``integrations/deepspeed.py``: what ``fill_match`` and ``fill_only`` fill from TrainingArguments.
_HF = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "train_batch_size": "the batch sizes and ranks",
    "gradient_clipping": "max_grad_norm",
    "optimizer.params.lr": "learning_rate",
    "optimizer.params.betas": "adam_beta1 and adam_beta2",
    "optimizer.params.eps": "adam_epsilon",
    "optimizer.params.weight_decay": "weight_decay",
    "scheduler.params.warmup_min_lr": "0",
    "scheduler.params.warmup_max_lr": "learning_rate",
    "scheduler.params.total_num_steps": "the number of steps",
    "scheduler.params.warmup_num_steps": "warmup_steps",
    "fp16.enabled": "fp16",
    "bf16.enabled": "bf16",
    "zero_optimization.reduce_bucket_size": "the model's hidden size",
    "zero_optimization.stage3_prefetch_bucket_size": "the model's hidden size",
    "zero_optimization.stage3_param_persistence_threshold": "the model's hidden size",
}
#: accelerate ``utils/dataclasses.py`` (``DeepSpeedPlugin.__post_init__``, ``set_mixed_precision``) and
#: ``accelerator.py`` (``_prepare_deepspeed``).
_ACCELERATE = {
    **{
        key: "the script or the launcher"
        for key in _HF
        if key not in ("optimizer.params.betas", "optimizer.params.eps")
    },
    "zero_optimization.stage": "zero_stage",
    "zero_optimization.offload_optimizer.device": "offload_optimizer_device",
    "zero_optimization.offload_param.device": "offload_param_device",
    "zero_optimization.offload_optimizer.nvme_path": "offload_optimizer_nvme_path",
    "zero_optimization.offload_param.nvme_path": "offload_param_nvme_path",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": "zero3_save_16bit_model",
}
_FILLED = {HF: _HF, ACCELERATE: _ACCELERATE}
#: ``autotuning/autotuner.py`` (``get_gas_from_user_config``, ``get_min_max_micro_batch_size``).
_AUTOTUNED = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")

#: Sections in which the word is DeepSpeed's own (``zenflow_config.py``, ``auto_ep_config.py``).
_OWN_WORD = ("zero_optimization.zenflow.", "expert_parallel.")


def is_auto(config: Configuration, path: str) -> bool:
    """Whether the value at ``path`` is an ``"auto"`` that is not DeepSpeed's own word."""
    return config.get(path) == "auto" and path in _autos(config)


def _autos(config: Configuration) -> list[str]:
    return [path for path in auto_keys(config.document) if not path.startswith(_OWN_WORD)]


def auto(config: Configuration) -> Iterator[Finding]:
    """Every ``"auto"``.

    Source: ``runtime/config_utils.py`` (``DeepSpeedConfigModel.__init__`` drops it in pydantic sections); the
    other sections take it as the text that it is, and the frameworks named above.
    """
    consumer = config.run.consumer
    for path in _autos(config):
        source = _FILLED.get(consumer, {}).get(path)
        if source is not None:
            message = f"{CONSUMER_NAMES[consumer]} fills in {path} from {source}"
            yield config.finding(RESOLVED, path, message, on_value=True)
            continue
        if config.tuned and path in _AUTOTUNED:
            yield config.finding(RESOLVED, path, f"DeepSpeed's autotuner fills in {path}", on_value=True)
            continue
        drops = is_pydantic(path.rpartition(".")[0])
        effect = "DeepSpeed drops it and takes the default" if drops else "DeepSpeed takes the word for the value"
        severity = WARNING if drops and consumer == HF else ERROR
        message = f'nobody fills in "auto" at {path}: {effect}'
        others = [CONSUMER_NAMES[name] for name, filled in _FILLED.items() if path in filled]
        instead = "the value" + (f", or --for if {' or '.join(others)} reads the file" if others else "")
        yield config.finding(AUTO, path, message, instead, severity=severity, on_value=True)


CHECKS = (auto,)
