"""Names of the classes of transformers' that run something of their own."""

from __future__ import annotations

GPT2 = "GPT2LMHeadModel"
GPT_NEOX = "GPTNeoXForCausalLM"
STABLELM = "StableLmForCausalLM"
OPT = "OPTForCausalLM"
BLOOM = "BloomForCausalLM"
FALCON = "FalconForCausalLM"
GEMMA3 = "Gemma3ForCausalLM"
QWEN2_MOE = "Qwen2MoeForCausalLM"
DEEPSEEK_V2, DEEPSEEK_V3 = "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"

#: Those that add a bias within a product even where stage 3 puts a linear function of its own in the place of torch's:
#: GPT-2's layers are none of torch's (transformers' pytorch_utils.py Conv1D), and of OPT's MLP, whose tokens are in one
#: dimension, that function makes the same call (deepspeed/runtime/zero/linear.py, ``input.dim() == 2``).
FUSE_BIAS = frozenset([GPT2, OPT])
