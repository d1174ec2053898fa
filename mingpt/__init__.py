"""A minGPT: Karpathy's 2022 architecture, small enough to read in one sitting. Imports torch only."""

from mingpt.model import GPT, GPTConfig

__all__ = ["GPT", "GPTConfig"]
