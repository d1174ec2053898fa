"""Chosen leaves: the modules of a model that a configuration's ``leaf_module`` makes leaves of stage 3.

Source: DeepSpeed 0.19.8 utils/z3_leaf_module.py (apply_zero_leaf_module_config): a class matches by its bare name or
with its module, a name as it is in ``named_modules()``, a suffix as that ends; and runtime/engine.py, which applies it
to the model that it is given, after zero.Init.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache

from dsplan.errors import InputError
from dsplan.families import Decoder
from dsplan.families.decoder import FETCHED_WHOLE, GATED
from dsplan.model import ModelShape
from dsplan.zero import LeafModule, ZeroConfig

KEY = "zero_optimization.leaf_module"
_MLP = "mlp"
STAGE_OF_LEAVES = 3


def with_chosen_leaf(model: ModelShape, zero: ZeroConfig) -> ModelShape:
    """``model`` as ``zero`` says which of its submodules are leaves; itself where that is what DeepSpeed takes anyway.

    Raises:
        InputError: it makes a leaf of something else than each block's mixture of experts or gated MLP.
    """
    chosen = zero.leaf_module
    if zero.stage != STAGE_OF_LEAVES or chosen == LeafModule():
        return model
    return _with_leaf(model, chosen)


@lru_cache(maxsize=64)
def _with_leaf(model: ModelShape, chosen: LeafModule) -> ModelShape:
    if model.decoder is None:
        return _without_leaves(model, chosen)
    leaf = _leaf(model, model.decoder, chosen)
    if leaf == model.decoder.leaf:
        return model
    config = {**json.loads(model.config), "leaf": leaf}
    decoder = replace(model.decoder, chosen_leaf=leaf)
    return ModelShape.of_decoder(decoder, config, name=model.name, attention=model.attention)


def _without_leaves(model: ModelShape, chosen: LeafModule) -> ModelShape:
    """A minGPT, whose own classes are of no family."""
    modules = _modules(model)
    named = [name for name in chosen.names if name in modules]
    named += [suffix for suffix in chosen.name_suffixes if any(name.endswith(suffix) for name in modules)]
    named += [each for each in chosen.classes or () if not each.startswith("transformers.")]
    if named:
        raise InputError(_refusal(named[0]))
    return model


def _leaf(model: ModelShape, decoder: Decoder, chosen: LeafModule) -> str:
    """The submodule of every block that is a leaf; empty: none."""
    leaves = {_default(decoder)}
    if chosen.classes is not None:
        leaves = {_of_class(decoder, each) for each in chosen.classes}
    leaves.discard("")
    modules = _modules(model)
    found = {name for name in chosen.names if name in modules}
    for suffix in chosen.name_suffixes:
        found |= {name for name in modules if name.endswith(suffix)}
    allowed = _allowed(decoder)
    for leaf in allowed:
        everywhere = {name for name in modules if name.startswith(decoder.prefix) and name.endswith(f".{leaf}")}
        if found >= everywhere:
            found -= everywhere
            leaves.add(leaf)
    if found:
        raise InputError(_refusal(min(found), allowed))
    if len(leaves) > 1:
        raise InputError(_refusal(" and ".join(sorted(leaves)), allowed))
    return next(iter(leaves), "")


def _default(decoder: Decoder) -> str:
    return replace(decoder, chosen_leaf=None).leaf


def _allowed(decoder: Decoder) -> tuple[str, ...]:
    """What formulas know as a leaf: a mixture that is one by default, or the MLP of Llama's block."""
    if decoder.experts is not None:
        return (decoder.experts.module,) if decoder.causal_lm in FETCHED_WHOLE else ()
    return (_MLP,) if decoder.mlp == GATED and decoder.prefix == "model.layers." else ()


def _of_class(decoder: Decoder, name: str) -> str:
    """The submodule of the blocks that is of a class; empty: none is."""
    bare, family = name.rpartition(".")[2], decoder.causal_lm.removesuffix("ForCausalLM")
    if decoder.experts is not None and bare == f"{family}SparseMoeBlock":
        return decoder.experts.module
    if bare == f"{family}MLP" and _allowed(decoder) == (_MLP,):
        return _MLP
    others = [each.removesuffix("ForCausalLM") for each in FETCHED_WHOLE]
    if not bare.startswith(family) and any(bare.startswith(each) for each in others):
        return ""  # of another family
    raise InputError(_refusal(name, _allowed(decoder)))


def _modules(model: ModelShape) -> set[str]:
    """Names of the modules that have parameters, their own or their children's."""
    found = set()
    for parameter in model.parameters:
        parts = parameter.name.split(".")[:-1]
        found |= {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return found


def _refusal(what: str, allowed: tuple[str, ...] = ()) -> str:
    known = f"the {' or '.join(allowed)} of every block, or none" if allowed else "none of this model"
    return f"{KEY}: {what} is not modelled as a leaf (modelled: {known}); a dry run is: dsplan verify --device fake"
