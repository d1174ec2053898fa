"""Naming the flag in an error that a type raised about its field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from dsplan.errors import InputError

#: The flag that sets each field, by the name that the field has in messages.
FLAGS = {
    "num_parameters": "--params",
    "model": "--model",
    "num_layers": "--n-layer",
    "num_attention_heads": "--n-head",
    "hidden_size": "--n-embd",
    "vocab_size": "--vocab-size",
    "max_position_embeddings": "--block-size",
    "attention": "--attention",
    "activation": "--activation",
    "dropout": "--dropout",
    "tie_word_embeddings": "--tie-word-embeddings",
    "lora_rank": "--lora-rank",
    "lora_targets": "--lora-targets",
    "frozen_layers": "--frozen-layers",
    "sequence_length": "--seq-len",
    "micro_batch_size": "--micro-batch-size",
    "gradient_accumulation_steps": "--gradient-accumulation-steps",
    "precision": "--precision",
    "optimizer": "--optimizer",
    "activation_checkpointing": "--activation-checkpointing",
    "accelerator": "--gpu",
    "device memory": "--device-memory",
    "headroom": "--headroom",
    "global_batch_size": "--global-batch-size",
    "deepspeed-version": "--deepspeed-version",
    "gpus": "--gpus",
    "nodes": "--nodes",
}
# Names without an underscore are words of the language too: they are fields only at the start of a message.
_FIELDS = re.compile(r"\b(" + "|".join(name for name in FLAGS if "_" in name) + r")\b")


def with_flags(text: str) -> str:
    """``text`` with the names of fields replaced by the flags that set them."""
    field, colon, rest = text.partition(":")
    if colon and field in FLAGS:
        text = f"{FLAGS[field]}:{rest}"
    return _FIELDS.sub(lambda match: FLAGS[match.group()], text)


@contextmanager
def naming_flags() -> Iterator[None]:
    """Turn the fields in an InputError that is raised inside into flags."""
    try:
        yield
    except InputError as error:
        raise InputError(with_flags(str(error))) from error
