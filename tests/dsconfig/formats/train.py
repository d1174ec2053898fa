"""Take a real step with what was emitted, through the Trainer or accelerate: ``python -m … hf|accelerate FOLDER...``.

Prints one JSON line a folder: {"folder", "resolved", "error"}, ``resolved`` being the configuration of the
DeepSpeed engine that took the step. One rank on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .resolve import environment_of, report


def hf() -> Callable[[Path], dict[str, Any]]:
    """A script as people write it, stopped after one step."""
    from dataclasses import dataclass, field

    from transformers import HfArgumentParser, Trainer, TrainerCallback, TrainingArguments

    @dataclass
    class Arguments(TrainingArguments):
        use_cpu: bool = field(default=True)

    class OneStep(TrainerCallback):
        def on_step_end(self, *given: Any, **_: Any) -> None:
            given[2].should_training_stop = True  # TrainerControl

    def train(_: Path) -> dict[str, Any]:
        (arguments,) = HfArgumentParser(Arguments).parse_json_file("training_arguments.json")
        trainer = Trainer(model=_model(), args=arguments, train_dataset=_samples(), callbacks=[OneStep()])
        trainer.train()
        return _engine_config(trainer.model_wrapped)

    return train


def accelerate() -> Callable[[Path], dict[str, Any]]:
    """A script with an Accelerator, in the environment of accelerate launch."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DummyOptim, DummyScheduler, patch_environment

    def train(folder: Path) -> dict[str, Any]:
        environment, _ = environment_of(folder)
        AcceleratorState._reset_state(reset_partial_state=True)
        with patch_environment(**environment):
            accelerator = Accelerator()
            model = _model()
            optimizer = DummyOptim(model.parameters())
            loader = torch.utils.data.DataLoader(_samples(), batch_size=2)
            engine, _, loader, _ = accelerator.prepare(model, optimizer, loader, DummyScheduler(optimizer))
            for batch in loader:
                with accelerator.accumulate(engine):
                    accelerator.backward(engine(**batch).loss)
        assert engine.global_steps == 1
        return _engine_config(engine)

    return train


def _model() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_head=2, n_embd=64, vocab_size=128, n_positions=32, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)


def _samples() -> list[dict[str, Any]]:
    """What three micro batches of two take."""
    import torch

    return [{"input_ids": torch.arange(16), "labels": torch.arange(16)} for _ in range(6)]


def _engine_config(engine: Any) -> dict[str, Any]:
    assert type(engine).__name__ == "DeepSpeedEngine"
    config = dict(engine.config)
    engine.destroy()
    return config


def main() -> None:
    report({"hf": hf, "accelerate": accelerate}[sys.argv[1]](), sys.argv[2:])


if __name__ == "__main__":
    main()
