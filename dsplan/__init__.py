"""dsplan: which DeepSpeed configuration trains your model on your machines, to the byte."""

__version__ = "0.1.0"
