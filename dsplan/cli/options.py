"""The options that the commands share, declared once.

A command takes a group as one parameter (``model: ModelOptions``); :mod:`dsplan.cli.signature` spreads
its fields into the flat signature that typer reads. None means "not given". The command lines of the minGPT benchmark
scripts can be pasted: :data:`dsplan.cli.SPELLINGS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dsplan.cli.completion import (
    accelerators,
    activations,
    attentions,
    checkpointings,
    consumers,
    models,
    optimizers,
    precisions,
)

_MODEL = "Model: one of --params, --model or the shape"
_WORKLOAD = "Workload"
_MACHINE = "Machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What is trained: a parameter count, a name or file, or the shape; the shape's flags override the others."""

    params: Annotated[
        str | None,
        typer.Option(
            "--params",
            metavar="COUNT",
            help="Parameter count such as 45B; a shape is inferred.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME|PATH",
            autocompletion=models,
            help="A preset (gpt2-xl, llama-3.1-8b, ...), a model file or a config.json.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    module: Annotated[
        str | None,
        typer.Option(
            "--module",
            metavar="FILE:FACTORY",
            help="A torch module of your own, for verify's dry run and for check: PACKAGE.FILE:FACTORY, a function "
            "that makes it.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    n_layer: Annotated[
        int | None,
        typer.Option("--n-layer", metavar="N", help="Transformer blocks.", rich_help_panel=_MODEL),
    ] = None
    n_head: Annotated[
        int | None, typer.Option("--n-head", metavar="N", help="Attention heads.", rich_help_panel=_MODEL)
    ] = None
    n_embd: Annotated[int | None, typer.Option("--n-embd", metavar="N", help="Width.", rich_help_panel=_MODEL)] = None
    vocab_size: Annotated[
        int | None,
        typer.Option("--vocab-size", metavar="N", help="Vocabulary (default 50257).", rich_help_panel=_MODEL),
    ] = None
    block_size: Annotated[
        int | None,
        typer.Option("--block-size", metavar="N", help="Longest sequence (default 1024).", rich_help_panel=_MODEL),
    ] = None
    attention: Annotated[
        str | None,
        typer.Option(
            "--attention",
            metavar="KIND",
            autocompletion=attentions,
            help="eager, sdpa or flash_attention_2.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    activation: Annotated[
        str | None,
        typer.Option(
            "--activation", metavar="KIND", autocompletion=activations, help="gelu_new or gelu.", rich_help_panel=_MODEL
        ),
    ] = None
    dropout: Annotated[
        float | None,
        typer.Option("--dropout", metavar="P", help="Dropout probability (default 0.1).", rich_help_panel=_MODEL),
    ] = None
    tie_word_embeddings: Annotated[
        bool,
        typer.Option("--tie-word-embeddings", help="The head shares the token embedding.", rich_help_panel=_MODEL),
    ] = False
    no_tie_word_embeddings: Annotated[
        bool,
        typer.Option(
            "--no-tie-word-embeddings", help="The head has weights of its own (default).", rich_help_panel=_MODEL
        ),
    ] = False
    lora_rank: Annotated[
        int | None,
        typer.Option(
            "--lora-rank", metavar="R", help="Train adapters of this rank, and freeze the rest.", rich_help_panel=_MODEL
        ),
    ] = None
    lora_targets: Annotated[
        str | None,
        typer.Option(
            "--lora-targets",
            metavar="NAMES",
            help="Linear layers with adapters, such as q_proj,v_proj (default: all-linear).",
            rich_help_panel=_MODEL,
        ),
    ] = None
    frozen_layers: Annotated[
        int | None,
        typer.Option(
            "--frozen-layers",
            metavar="N",
            help="The first N blocks, and what comes before them, are not trained.",
            rich_help_panel=_MODEL,
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadOptions:
    """How it is trained."""

    seq_len: Annotated[
        int | None,
        typer.Option(
            "--seq-len",
            metavar="TOKENS",
            help="Tokens of a sample (default: the model's block).",
            rich_help_panel=_WORKLOAD,
        ),
    ] = None
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            "--micro-batch-size",
            metavar="N",
            help="Samples per GPU and pass (default 1).",
            rich_help_panel=_WORKLOAD,
        ),
    ] = None
    gradient_accumulation_steps: Annotated[
        int | None,
        typer.Option(
            "--gradient-accumulation-steps",
            metavar="N",
            help="Micro batches per step (default 1).",
            rich_help_panel=_WORKLOAD,
        ),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="NAME",
            autocompletion=precisions,
            help="fp32, fp16 or bf16 (default: bf16 where the device has it).",
            rich_help_panel=_WORKLOAD,
        ),
    ] = None
    optimizer: Annotated[
        str | None,
        typer.Option(
            "--optimizer",
            metavar="NAME",
            autocompletion=optimizers,
            help="adamw, adam, sgd, lion, adagrad or muon (default adamw).",
            rich_help_panel=_WORKLOAD,
        ),
    ] = None
    activation_checkpointing: Annotated[
        str | None,
        typer.Option(
            "--activation-checkpointing",
            metavar="KIND",
            autocompletion=checkpointings,
            help="none, torch or deepspeed (default: plans with none and with torch).",
            rich_help_panel=_WORKLOAD,
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineOptions:
    """On what it is trained. Without ``gpu`` it is the device of this machine, if it has one."""

    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus",
            metavar="N",
            help="GPUs of each node (default: those of this machine, or 1).",
            rich_help_panel=_MACHINE,
        ),
    ] = None
    nodes: Annotated[
        int | None, typer.Option("--nodes", metavar="N", help="Nodes (default 1).", rich_help_panel=_MACHINE)
    ] = None
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="NAME",
            autocompletion=accelerators,
            help="Catalogued device: h200, a100-80gb, gaudi2, ...",
            rich_help_panel=_MACHINE,
        ),
    ] = None
    device_memory: Annotated[
        str | None,
        typer.Option(
            "--device-memory",
            metavar="SIZE",
            help="40GiB, in place of the catalogue's figure.",
            rich_help_panel=_MACHINE,
        ),
    ] = None
    host_memory: Annotated[
        str | None,
        typer.Option(
            "--host-memory", metavar="SIZE", help="Memory of each node, such as 1TB.", rich_help_panel=_MACHINE
        ),
    ] = None
    nvme_path: Annotated[
        Path | None,
        typer.Option("--nvme-path", metavar="DIR", help="Folder on each node's NVMe drive.", rich_help_panel=_MACHINE),
    ] = None


DsConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--ds-config", metavar="FILE", help="Estimate exactly this DeepSpeed configuration.", show_default=False
    ),
]
ConsumerOption = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="WHO",
        autocompletion=consumers,
        help='Who hands the --ds-config file to DeepSpeed and fills in its "auto": deepspeed (a script; the default), '
        "hf, accelerate or lightning.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print a JSON document.")]
