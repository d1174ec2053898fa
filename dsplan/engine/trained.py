"""What of a model is trained: the parameters that DeepSpeed's optimizers and buckets know."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache

from dsplan.model import ModelShape


def all_trained(model: ModelShape) -> bool:
    """Whether every parameter is trained."""
    return model.decoder is None or model.num_trained_parameters == model.num_parameters


@lru_cache(maxsize=64)
def trained_part(model: ModelShape) -> ModelShape:
    """The model of the parameters that are trained; ``model`` itself where all are."""
    decoder = model.decoder
    if decoder is None or decoder.trained:
        return model
    before, after = (tuple(each for each in end if each.trained) for end in (decoder.before, decoder.after))
    kinds = tuple(tuple(each for each in kind if each.trained) for kind in decoder.kinds)
    kept = replace(decoder, before=before, kinds=kinds, after=after, tied=decoder.tied if before else "")
    config = {**json.loads(model.config), "trained_part": True}
    return ModelShape.of_decoder(kept, config, name=model.name, attention=model.attention)
