"""Memory-efficient attention: what its backward pass takes in fp32 beside the gradients.

Source: aten/src/ATen/native/transformers/cuda/attention_backward.cu; mem_eff_attention/kernel_backward.h
(workspace_elements_gq, GradQTempStorage). In half precision the kernel computes its delta itself.
"""

from __future__ import annotations

from dsplan.units import ceil_div, round_up

#: Queries, and columns of a head, that one block of threads sums up (kBlockSizeI, MatmulGradQ::ThreadblockShape::kN).
BLOCK = 64
#: Before each block a lock, a counter and their padding, in elements.
HEADER = 4
FLOAT_BYTES = 4


def efficient_backward_workspaces(
    batch: int, heads: int, queries: int, head_size: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bytes requested at once, for two parts that run one after the other.

    First the product of gradient and output and its sums over a head; then those sums, contiguous, and the blocks'
    sums of the queries' gradient.
    """
    rows = batch * heads * queries
    delta = FLOAT_BYTES * rows
    blocks = ceil_div(queries, BLOCK) * ceil_div(head_size, BLOCK)
    sums = FLOAT_BYTES * batch * heads * round_up(blocks * (BLOCK * BLOCK + HEADER), HEADER)
    return (FLOAT_BYTES * rows * head_size, delta), (delta, sums)
