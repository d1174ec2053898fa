"""The configurations in which the formulas of transformers' decoders are held against dry runs.

Published widths, three layers: what differs between layers is nothing, and a dry run takes seconds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dsplan.catalogue import accelerator, preset
from dsplan.dsconfig.emit import emit
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.modelfile import changed
from dsplan.plan import Plan
from dsplan.workload import Workload
from dsplan.zero import ZeroConfig
from runner.spec import RunSpec

LAYERS = 3
RANKS = 2
TARGET = "h200"

#: By family: a decoder of the catalogue.
MODELS = {
    "GPT-2": "gpt2-medium-hf",
    "Llama 2": "llama-2-7b",
    "Llama 3": "llama-3.2-1b",
    "Mistral": "mistral-7b",
    "Qwen 2.5": "qwen2.5-1.5b",
    "Qwen 3": "qwen3-0.6b",
    "Gemma": "gemma-2b",
    "Gemma 2": "gemma-2-2b",
    "Gemma 3": "gemma-3-12b",
    "Phi-3": "phi-3-mini",
    "Mixtral": "mixtral-8x7b",
    "Qwen 3 MoE": "qwen3-30b-a3b",
    "GPT-NeoX": "pythia-1.4b",
    "StableLM": "stablelm-2-1.6b",
    "OPT": "opt-1.3b",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One configuration of the grid."""

    family: str
    stage: int
    checkpointing: str = "none"
    attention: str = ""
    micro_batch_size: int = 2
    sequence_length: int = 1000
    precision: str = "bf16"

    @property
    def name(self) -> str:
        tokens = f"{self.micro_batch_size} x {self.sequence_length}"
        parts = [self.family, f"stage {self.stage}", self.checkpointing, self.model.attention, self.precision, tokens]
        return ", ".join(parts)

    @property
    def model(self) -> ModelShape:
        fields: dict[str, Any] = {"num_layers": LAYERS} | ({"attention": self.attention} if self.attention else {})
        return changed(preset(MODELS[self.family]), fields)

    @property
    def plan(self) -> Plan:
        workload = Workload(
            micro_batch_size=self.micro_batch_size,
            sequence_length=self.sequence_length,
            precision=self.precision,
            activation_checkpointing=self.checkpointing,
        )
        return Plan(name="grid", zero=ZeroConfig(stage=self.stage), workload=workload)

    def spec(self, rank: int, *, steps: int = 3) -> RunSpec:
        """The dry run of one rank."""
        target = accelerator(TARGET)
        cluster = Cluster(accelerator=target, gpus_per_node=RANKS)
        return RunSpec(
            model=self.model.to_config(),
            ds_config=emit(self.plan, self.model, cluster),
            sequence_length=self.sequence_length,
            activation_checkpointing=self.checkpointing,
            device="fake",
            gpus=RANKS,
            steps=steps,
            rank=rank,
            target=asdict(target),
        )


#: Stages with and without checkpointing, of every family as transformers runs it unless told otherwise.
PLAIN = [
    Setting(family=family, stage=stage, checkpointing=checkpointing)
    for family in MODELS
    for stage in (0, 2, 3)
    for checkpointing in ("none", "torch")
]
#: Attention in elementary operators, the other kinds of checkpointing, and fp32.
FURTHER = [
    *(Setting(family=family, stage=0, attention="eager") for family in ("Llama 3", "Qwen 2.5", "Gemma")),
    *(
        Setting(family=family, stage=2, attention="eager", checkpointing="torch")
        for family in ("Llama 3", "Qwen 3", "Gemma")
    ),
    *(
        Setting(family=family, stage=stage, checkpointing="deepspeed")
        for family in ("Llama 3", "Mistral")
        for stage in (1, 3)
    ),
    Setting(family="Llama 2", stage=1, precision="fp32"),
    Setting(family="GPT-2", stage=1, precision="fp16"),
    Setting(family="Llama 3", stage=1, micro_batch_size=1, sequence_length=4096),
    Setting(family="Qwen 3", stage=3, micro_batch_size=8, sequence_length=512),
]
GRID = [*PLAIN, *FURTHER]
#: The few that every test run dry-runs.
IN_CI = [
    Setting(family="Llama 3", stage=0, sequence_length=500),
    Setting(family="Gemma", stage=3, checkpointing="torch", sequence_length=500),
    Setting(family="GPT-2", stage=3, sequence_length=500),
    Setting(family="Mixtral", stage=2, sequence_length=500),
]
