"""DDP's reducer, as far as it takes memory: torch's reads and writes memory that fake tensors do not have.

torch/csrc/distributed/c10d/reducer.cpp. What happens to gradients happens in its flat buckets and in place
(``mark_variable_ready_dense``, ``copy_bucket_to_grad``); so it comes to when buckets are made, and of what.
"""

from __future__ import annotations

from typing import Any

import torch


class Reducer:
    """``torch.distributed.Reducer`` without unused parameters, static graphs and communication hooks.

    Its buckets are made at once, of all parameters where none can be unused (distributed.py,
    ``compute_bucket_size_limits``), and made anew before the first forward pass after a backward pass that reduced, by
    the order in which the gradients came (``rebuild_buckets``).
    """

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        bucket_indices: list[list[int]],
        _size_limits: list[int],
        _process_group: Any,
        expect_sparse_gradients: list[bool],
        bucket_bytes_cap: int,
        find_unused_parameters: bool,
        gradient_as_bucket_view: bool,
        _names: dict[int, str],
        first_bucket_bytes_cap: int,
        *_: Any,
    ) -> None:
        if find_unused_parameters or gradient_as_bucket_view:
            raise NotImplementedError(
                "the dry run does not cover DDP with find_unused_parameters or gradient_as_bucket_view"
            )
        self._parameters = parameters
        self._sparse = expect_sparse_gradients
        self._limits = [first_bucket_bytes_cap, bucket_bytes_cap]
        self._order: list[int] = []
        self._is_rebuilt = False
        self._reduces = False
        self._buckets = self._made(bucket_indices)
        self._accumulators = [_accumulator(parameter) for parameter in parameters]  # whose hooks die with them
        for index, accumulator in enumerate(self._accumulators):
            accumulator.register_hook(self._hook(index))

    def set_logger(self, logger: Any) -> None:
        """It logs nothing."""

    def prepare_for_forward(self) -> None:
        """It counts iterations."""

    def prepare_for_backward(self, _outputs: list[torch.Tensor]) -> None:
        """This backward pass reduces."""
        self._reduces = True

    def _rebuild_buckets(self) -> bool:
        self._reduces = False
        if self._is_rebuilt or not self._order:
            return False
        ordered: list[torch.Tensor] = [self._parameters[index] for index in self._order]
        indices, _ = torch._C._distributed_c10d._compute_bucket_assignment_by_size(
            ordered, self._limits, self._sparse, self._order
        )
        self._synchronise(indices)
        self._is_rebuilt = True
        self._buckets.clear()
        self._buckets = self._made(indices)
        return True

    def _made(self, bucket_indices: list[list[int]]) -> list[torch.Tensor]:
        """``initialize_buckets``: one flat tensor each."""
        buckets = []
        for indices in bucket_indices:
            parameters = [self._parameters[index] for index in indices]
            numel = sum(parameter.numel() for parameter in parameters)
            buckets.append(torch.empty(numel, dtype=parameters[0].dtype, device=parameters[0].device))
        return buckets

    def _synchronise(self, indices: list[list[int]]) -> None:
        """``sync_bucket_indices``: rank 0 tells the others which they are, and how many of each."""
        numbers = sum(map(len, indices)) + 1
        device = self._parameters[0].device
        told = []
        for count in (numbers, len(indices)):
            told += [torch.empty(count, dtype=torch.int32), torch.empty(count, dtype=torch.int32, device=device)]

    def _hook(self, index: int) -> Any:
        def ready(*_: Any) -> None:
            if self._reduces and not self._is_rebuilt:
                self._order.append(index)

        return ready


class Logger:
    """``torch.distributed.Logger``, which reads what torch's reducer has measured."""

    def __init__(self, _reducer: Reducer) -> None:
        pass

    def set_construction_data_and_log(self, *_: Any) -> None:
        """Nobody reads it."""

    def set_runtime_stats_and_log(self) -> None:
        """As above."""


def _accumulator(parameter: torch.nn.Parameter) -> Any:
    """Autograd's node that adds to ``parameter.grad``."""
    with torch.enable_grad():
        return parameter.expand_as(parameter).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
