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
from dsplan.modelfile import changed, shape_from_config
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
    "Qwen 2 MoE": "qwen1.5-moe-a2.7b",
    "DeepSeek V2": "deepseek-v2-lite",
    "DeepSeek V3": "deepseek-v3",
    "GPT-NeoX": "pythia-1.4b",
    "StableLM": "stablelm-2-1.6b",
    "OPT": "opt-1.3b",
    "OPT 350M": "opt-350m",
    "BLOOM": "bloom-1b1",
    "Falcon": "falcon-40b",
    "Falcon 7B": "falcon-7b",
}
#: What else differs from the catalogue's: layers that are alike, and experts that fit on the card.
KEYS: dict[str, dict[str, Any]] = {
    "DeepSeek V2": {"first_k_dense_replace": 0},
    "DeepSeek V3": {"first_k_dense_replace": 0, "n_routed_experts": 16},
}


#: Layers that differ, and parameters that are not trained: by name, fields of ModelShape and keys of the configuration.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "": ({}, {}),
    "first layer dense": ({}, {"first_k_dense_replace": 1}),
    "adapters everywhere": ({"lora_rank": 16}, {}),
    "adapters of q and v": ({"lora_rank": 8, "lora_targets": ["q_proj", "v_proj"]}, {}),
    "six layers, adapters": ({"lora_rank": 8, "num_layers": 6}, {}),
    "two layers frozen": ({"frozen_layers": 2}, {}),
    "seven layers": ({"num_layers": 7}, {}),
    "dropout": ({}, {"hidden_dropout": 0.1}),
    "no dropout of the embedding": ({}, {"embd_pdrop": 0.0}),
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
    window: int | None = None
    variant: str = ""

    @property
    def name(self) -> str:
        tokens = f"{self.micro_batch_size} x {self.sequence_length}"
        parts = [self.family, f"stage {self.stage}", self.checkpointing, self.model.attention, self.precision, tokens]
        parts += [] if self.window is None else [f"window {self.window}"]
        return ", ".join([*parts, self.variant] if self.variant else parts)

    @property
    def model(self) -> ModelShape:
        fields: dict[str, Any] = {"num_layers": LAYERS} | ({"attention": self.attention} if self.attention else {})
        more, keys = VARIANTS[self.variant]
        found = changed(preset(MODELS[self.family]), fields | more)
        keys = KEYS.get(self.family, {}) | keys | ({} if self.window is None else {"sliding_window": self.window})
        return shape_from_config({**found.to_config(), **keys}, where=self.family, name=found.name) if keys else found

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
#: Attention in elementary operators, windows shorter than the sample, the other kinds of checkpointing, fp16 and fp32.
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
    *(Setting(family="Mistral", stage=stage, window=512) for stage in (1, 3)),
    *(
        Setting(family=family, stage=2, window=512, checkpointing="torch", sequence_length=1024)
        for family in ("Mistral", "Phi-3", "Mixtral")
    ),
    Setting(family="Phi-3", stage=0, window=512, precision="fp16"),
    Setting(family="BLOOM", stage=1, precision="fp16"),
    Setting(family="DeepSeek V3", stage=1, sequence_length=512),
    *(Setting(family=family, stage=3, checkpointing="deepspeed") for family in ("Qwen 2 MoE", "DeepSeek V2")),
    *(Setting(family=family, stage=0, attention="eager", sequence_length=512) for family in ("Mixtral", "Qwen 2 MoE")),
    *(
        Setting(family=family, stage=stage, attention="eager", checkpointing=checkpointing, micro_batch_size=samples)
        for family in ("GPT-2", "GPT-NeoX", "StableLM", "OPT", "OPT 350M", "DeepSeek V2", "DeepSeek V3", "Falcon 7B")
        for stage, checkpointing, samples in ((0, "none", 2), (2, "torch", 2), (3, "none", 1))
    ),
    Setting(family="Falcon", stage=1, attention="eager", checkpointing="torch"),
    Setting(family="Phi-3", stage=1, attention="eager"),
    *(Setting(family=family, stage=1, attention="eager", precision="fp16") for family in ("GPT-2", "GPT-NeoX", "OPT")),
    # Fewer heads of keys than kernels take: elementary operators.
    Setting(family="Falcon 7B", stage=1, precision="fp16", checkpointing="deepspeed"),
    *(
        Setting(family=family, stage=1, precision="fp32", checkpointing=checkpointing)
        for family, checkpointing in (("Llama 3", "none"), ("Qwen 3", "torch"), ("Gemma", "none"))
    ),
]
#: Layers that differ, adapters and frozen layers.
VARIED = [
    *(
        Setting(family=family, stage=stage, variant="first layer dense", checkpointing=checkpointing)
        for family in ("DeepSeek V2", "DeepSeek V3")
        for stage, checkpointing in ((1, "none"), (2, "torch"), (3, "none"))
    ),
    *(
        Setting(family="Gemma 3", stage=stage, variant="seven layers", window=512, checkpointing=checkpointing)
        for stage, checkpointing in ((2, "none"), (3, "torch"))
    ),
    *(
        Setting(family="GPT-NeoX", stage=stage, variant="dropout", checkpointing=checkpointing)
        for stage, checkpointing in ((0, "none"), (2, "torch"), (3, "none"))
    ),
    Setting(family="GPT-2", stage=1, variant="no dropout of the embedding", checkpointing="torch"),
    *(
        Setting(family=family, stage=stage, variant=variant, checkpointing=checkpointing)
        for variant in ("adapters everywhere", "adapters of q and v", "two layers frozen")
        for family, stage, checkpointing in (
            ("Llama 3", 0, "none"), ("Llama 2", 1, "none"), ("Qwen 2.5", 2, "none"), ("Qwen 3", 2, "torch"),
            ("Gemma", 2, "none"), ("Llama 3", 3, "none"), ("Qwen 3", 3, "torch"), ("OPT", 3, "deepspeed"),
            ("Qwen 2 MoE", 3, "none"),
        )
    ),
    *(
        Setting(family="Llama 3", stage=3, variant="six layers, adapters", checkpointing=checkpointing)
        for checkpointing in ("none", "torch")
    ),
]  # fmt: skip
GRID = [*PLAIN, *FURTHER, *VARIED]
#: The few that every test run dry-runs.
IN_CI = [
    Setting(family="Llama 3", stage=0, sequence_length=500),
    Setting(family="Gemma", stage=3, checkpointing="torch", sequence_length=500),
    Setting(family="GPT-2", stage=3, sequence_length=500),
    Setting(family="Mixtral", stage=3, sequence_length=500),
    Setting(family="Llama 3", stage=2, sequence_length=500, variant="adapters everywhere"),
    Setting(family="OPT 350M", stage=3, sequence_length=500, attention="eager"),
    Setting(family="Falcon 7B", stage=2, sequence_length=300),
]
