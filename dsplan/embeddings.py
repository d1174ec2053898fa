"""Embeddings: what the gradient of a table takes of a CUDA device beside itself, while it is made.

Source: aten/src/ATen/native/cuda/Embedding.cu, embedding_dense_backward_cuda; EmbeddingBackwardKernel.cu,
embedding_backward_cuda_kernel.
"""

from __future__ import annotations

INDEX_BYTES = 8
#: Up to so many indices each row is added up by itself; of more the indices are sorted first.
MOST_UNSORTED = 3072
#: Rows of the gradient that one thread adds up (NROWS_PER_THREAD).
ROWS_PER_THREAD = 10


def embedding_backward_workspaces(num_indices: int, num_rows: int, width: int) -> tuple[int, ...]:
    """Bytes requested one after the other, all of them live when the last one is.

    The sorted indices and where each came from, the start of each row's segment, how many parts it has and where they
    start, and the parts: a row of ``width`` in fp32 for each ten indices, and for each row that occurs. The sort's own
    buffers are smaller and gone by then.
    """
    if num_indices <= MOST_UNSORTED:
        return ()
    segments = min(num_indices, num_rows)
    parts = num_indices // ROWS_PER_THREAD + segments
    indices = INDEX_BYTES * num_indices
    per_segment = INDEX_BYTES * segments
    return (
        *(indices, indices, indices, INDEX_BYTES),
        *(per_segment, per_segment, INDEX_BYTES),
        INDEX_BYTES * parts,
        4 * parts * width,
    )
