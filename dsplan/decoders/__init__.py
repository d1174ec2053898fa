"""decoders: what a block of one of transformers' decoders runs, as programs on the tape.

Each function stands for a piece of transformers' models/*/modeling_*.py; what torch's operators allocate, save and free
in it is followed allocation by allocation.
"""
