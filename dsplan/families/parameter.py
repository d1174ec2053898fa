"""Parameter: one tensor of a model by torch's name, and the usual groups of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(slots=True, unsafe_hash=True)
class Parameter:
    """One parameter tensor: its dotted name as torch spells it, its shape, and whether it is trained."""

    name: str
    shape: tuple[int, ...]
    trained: bool = True

    @property
    def numel(self) -> int:
        """Elements of the tensor; 1 of a scalar."""
        return prod(self.shape)


def linear(name: str, n_out: int, n_in: int, *, bias: bool = False) -> tuple[Parameter, ...]:
    """The parameters of ``nn.Linear(n_in, n_out)``: weight (n_out, n_in) and, with ``bias``, bias (n_out)."""
    weight = Parameter(f"{name}.weight", (n_out, n_in))
    return (weight, Parameter(f"{name}.bias", (n_out,))) if bias else (weight,)


def conv1d(name: str, n_out: int, n_in: int) -> tuple[Parameter, ...]:
    """The parameters of transformers' ``Conv1D``: the weight is stored transposed (pytorch_utils.py)."""
    return (Parameter(f"{name}.weight", (n_in, n_out)), Parameter(f"{name}.bias", (n_out,)))


def norm(name: str, width: int, *, bias: bool = False) -> tuple[Parameter, ...]:
    """The scale of an RMSNorm or LayerNorm over ``width`` elements and, with ``bias``, its shift."""
    weight = Parameter(f"{name}.weight", (width,))
    return (weight, Parameter(f"{name}.bias", (width,))) if bias else (weight,)
