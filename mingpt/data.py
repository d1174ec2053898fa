"""Batches to train on: synthetic tokens, or the small real text that ships with mingpt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

TEXT = Path(__file__).with_name("sonnets.txt")


def synthetic(vocab_size: int, batch: int, length: int, *, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (tokens, targets), each (batch, length) int64, drawn uniformly: costs what real tokens cost."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        tokens = torch.randint(vocab_size, (batch, length + 1), generator=generator)
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def text(vocab_size: int, batch: int, length: int, *, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (tokens, targets) of random windows of the text, one token per character.

    Raises:
        ValueError: the vocabulary is smaller than the text's, or the text shorter than a window.
    """
    characters = TEXT.read_text(encoding="utf-8")
    alphabet = {character: token for token, character in enumerate(sorted(set(characters)))}
    if len(alphabet) > vocab_size:
        raise ValueError(f"the text has {len(alphabet)} characters; a vocabulary of {vocab_size} cannot hold them")
    data = torch.tensor([alphabet[character] for character in characters])
    if len(data) <= length:
        raise ValueError(f"the text has {len(data)} characters; a window of {length} does not fit")
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(data) - length, (batch,), generator=generator).tolist()
        windows = torch.stack([data[start : start + length + 1] for start in starts])
        yield windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
