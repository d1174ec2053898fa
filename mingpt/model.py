"""GPT in Karpathy's minGPT architecture (2022): fused c_attn, learned positions, LayerNorm with bias.

Shapes in comments: B samples, T tokens, C = n_embd, nh heads of size hs = C / nh, V vocabulary.
Parameters, untied: L(12C² + 13C) + 2VC + block_size·C + 2C.

Every module draws its weights in its own constructor, so that the model can be built under
``deepspeed.zero.Init``, which partitions a module's parameters as soon as that constructor returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Checkpoint = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The keys of a model file; see schemas/model.schema.json."""

    n_layer: int
    n_head: int
    n_embd: int
    vocab_size: int = 50257
    block_size: int = 1024
    attention: str = "eager"  # or "sdpa": torch's fused attention, no T x T tensor
    activation: str = "gelu_new"  # GPT-2's tanh form in elementary operations, or "gelu": nn.GELU
    dropout: float = 0.1
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> GPTConfig:
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in document.items() if key in known})


class Linear(nn.Linear):
    """nn.Linear with normal weights of the given standard deviation and zero biases."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool = True, std: float = 0.02) -> None:
        self.std = std
        super().__init__(n_in, n_out, bias=bias)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """nn.Embedding with normal weights of standard deviation 0.02."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)


class NewGELU(nn.Module):
    """GPT-2's GELU (tanh approximation) as minGPT writes it: six elementary operations."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd, std=0.02 / math.sqrt(2 * config.n_layer))
        self.attn_dropout = nn.Dropout(config.dropout)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head = config.n_head
        self.fused = config.attention == "sdpa"
        if not self.fused:
            mask = torch.tril(torch.ones(config.block_size, config.block_size))
            self.register_buffer("bias", mask.view(1, 1, config.block_size, config.block_size))

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, nh, T, hs)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, nh, T, hs)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, nh, T, hs)
        y = self._fused(q, k, v) if self.fused else self._eager(q, k, v)  # (B, nh, T, hs)
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.resid_dropout(self.c_proj(y))

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropout = self.attn_dropout.p if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)

    def _eager(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        T = q.size(2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))  # (B, nh, T, T)
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        att = F.softmax(att, dim=-1)
        att = self.attn_dropout(att)
        return att @ v


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.act = NewGELU() if config.activation == "gelu_new" else nn.GELU()
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, std=0.02 / math.sqrt(2 * config.n_layer))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The language model; ``forward`` gives the mean loss in training and the logits otherwise.

    Args:
        config: the shape.
        checkpoint: ``checkpoint(block, x)`` runs a block and recomputes it in the backward pass
            (torch.utils.checkpoint.checkpoint or deepspeed.checkpointing.checkpoint); None keeps
            every activation.
    """

    def __init__(self, config: GPTConfig, checkpoint: Checkpoint | None = None) -> None:
        super().__init__()
        self.block_size = config.block_size
        self.checkpoint = checkpoint
        self.transformer = nn.ModuleDict(
            {
                "wte": Embedding(config.vocab_size, config.n_embd),
                "wpe": Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                "ln_f": nn.LayerNorm(config.n_embd),
            }
        )
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        T = tokens.size(1)  # tokens, targets: (B, T) int64
        if self.block_size < T:
            raise ValueError(f"a sequence of {T} tokens is longer than the block size {self.block_size}")
        positions = torch.arange(T, device=tokens.device).unsqueeze(0)  # (1, T)
        x = self.transformer["drop"](self.transformer["wte"](tokens) + self.transformer["wpe"](positions))  # (B, T, C)
        for block in self.transformer["h"]:
            x = block(x) if self.checkpoint is None else self.checkpoint(block, x)
        logits = self.lm_head(self.transformer["ln_f"](x))  # (B, T, V)
        if targets is None:
            return logits
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
