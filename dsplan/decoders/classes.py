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
