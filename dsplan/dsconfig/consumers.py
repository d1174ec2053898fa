"""Who hands a configuration to DeepSpeed: a script itself, or a framework, which reads and completes it first."""

from __future__ import annotations

DEEPSPEED, HF, ACCELERATE, LIGHTNING = "deepspeed", "hf", "accelerate", "lightning"
CONSUMERS = (DEEPSPEED, HF, ACCELERATE, LIGHTNING)
#: What messages call them.
CONSUMER_NAMES = {
    DEEPSPEED: "DeepSpeed",
    HF: "Hugging Face's Trainer",
    ACCELERATE: "accelerate",
    LIGHTNING: "Lightning",
}
