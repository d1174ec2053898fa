"""A kernel that is a package of its own."""

from __future__ import annotations

import importlib.util

import pytest

from dsplan.errors import MissingExtraError


@pytest.mark.engine
@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_what_is_missing_is_said_before_the_model_is_built() -> None:
    pytest.importorskip("transformers")
    from runner.models.hugging_face import CausalLm

    with pytest.raises(MissingExtraError, match="needs flash-attn, which is not installed; take --attention sdpa"):
        CausalLm({"model_type": "llama", "attn_implementation": "flash_attention_2"})
