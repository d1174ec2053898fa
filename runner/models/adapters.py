"""LoRA and frozen layers in a built model, as PEFT's ``inject_adapter_in_model`` and a Trainer make them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dsplan.families import ALL_LINEAR


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapter: ``base(x) + B(A(dropout(x)))`` (peft/tuners/lora/layer.py Linear.forward).

    ``lora_dropout``, ``lora_A`` and ``lora_B`` hold one adapter each, called ``default``, as PEFT's do. It has the type
    and the device of the layer's weight (LoraLayer._move_adapter_to_device_of_base_layer): at stage 3 zero.Init has
    cast that one and put it on the device, and DeepSpeed casts nothing afterwards (runtime/engine.py,
    _cast_module_mixed_precision). PEFT's ``get_peft_model`` makes 16-bit adapters fp32 unless told
    ``autocast_adapter_dtype=False``; ``inject_adapter_in_model`` does not.
    """

    def __init__(self, base_layer: nn.Module, n_in: int, n_out: int, rank: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        weight = base_layer.weight
        assert isinstance(weight, Tensor)
        a, b = nn.Linear(n_in, rank, bias=False), nn.Linear(rank, n_out, bias=False)
        self.lora_dropout = nn.ModuleDict({"default": nn.Identity()})
        self.lora_A = nn.ModuleDict({"default": a.to(device=weight.device, dtype=weight.dtype)})
        self.lora_B = nn.ModuleDict({"default": b.to(device=weight.device, dtype=weight.dtype)})
        self.scaling = 1.0

    def forward(self, x: Tensor) -> Tensor:
        result = self.base_layer(x)
        dtype = result.dtype
        a, b = self.lora_A["default"], self.lora_B["default"]
        assert isinstance(a, nn.Linear)
        result = result + b(a(self.lora_dropout["default"](x.to(a.weight.dtype)))) * self.scaling
        return result.to(dtype)  # type: ignore[no-any-return]


def adapt(model: Any, trained: Mapping[str, Any]) -> None:
    """Freeze ``model``, or its first layers, and put adapters in, by the ``dsplan`` section of a model file.

    An empty section leaves all parameters trained.
    """
    if not trained:
        return
    if "frozen_layers" in trained:
        _freeze_layers(model, int(trained["frozen_layers"]))
        return
    model.requires_grad_(False)
    targets = set(trained.get("lora_targets", [ALL_LINEAR]))
    blocks = _blocks(model)
    for name, module in list(blocks.named_modules()):
        last = name.rpartition(".")[2]
        sizes = _sizes(module)
        if sizes is not None and (ALL_LINEAR in targets or last in targets):
            parent = blocks.get_submodule(name.rpartition(".")[0])
            setattr(parent, last, LoraLinear(module, *sizes, int(trained["lora_rank"])))


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """(n_in, n_out) of a linear layer, of torch's or transformers'; None of another."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D":
        return int(module.nx), int(module.nf)  # type: ignore[arg-type]
    return None


def _blocks(model: Any) -> nn.Module:
    """The list of blocks: the longest of the model's module lists."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda found: sum(1 for _ in found.modules()))


def _freeze_layers(model: Any, count: int) -> None:
    blocks = _blocks(model)
    for index, block in enumerate(blocks.children()):
        if index < count:
            block.requires_grad_(False)
    first = next(iter(blocks.parameters()))
    for parameter in model.parameters():
        if parameter is first:
            return
        parameter.requires_grad_(False)
