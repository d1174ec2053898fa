"""What one device does with the operators of a transformer: seconds of each over a grid of sizes.

Every function returns rows of a profile (``schemas/profile.schema.json``). A row is what the device
takes, the host apart (:meth:`Bench.device_seconds`).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runner.device import Device

Row = dict[str, Any]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
#: A vocabulary that no power of two divides, GPT-2's: products with it use other kernels.
ODD_WIDTH = 50257
#: Seconds and repetitions of a series; how many series there are at least and at most.
_LEAST_S, _MOST_REPETITIONS, _FEWEST, _SERIES = 1.5e-3, 40, 3, 5
#: Series that lie closer together than this, by their median, are enough.
_ALIKE = 0.02
#: Seconds of matrix products before the first kernel is timed.
_SETTLING_S = 0.5
#: How long the device waits at most until a series is asked for, and the most cycles that it has in a second.
_LONGEST_WAIT_S, _CYCLES_PER_S = 5e-3, 2.5e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A device to measure on, the largest tensor to make (elements), and when to stop."""

    device: Device
    largest: int
    deadline: float
    small: bool = False

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() > self.deadline

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
        made = torch.empty(shape, dtype=dtype, device=self.device.torch_device()).normal_()
        return made.requires_grad_(grad)

    def seconds(self, call: Callable[[], object]) -> float:
        """Mean seconds of ``call``, after two that are not counted: the median of three to five series."""
        call()
        self.device.synchronize()
        begun = time.perf_counter()
        call()
        self.device.synchronize()
        once = max(time.perf_counter() - begun, 1e-7)
        repetitions = max(1, min(_MOST_REPETITIONS, round(_LEAST_S / once)))

        def series() -> float:
            begun = time.perf_counter()
            for _ in range(repetitions):
                call()
            self.device.synchronize()
            return time.perf_counter() - begun

        return _settled(series) / repetitions

    def device_seconds(self, call: Callable[[], object]) -> float:
        """Mean seconds that the device itself takes for ``call``: by its own clock, while the host is ahead.

        A kernel that only waits goes first, so that all calls of a series lie asked for when it ends: no time of the
        host is in it. The wait lets the device breathe besides, as the other kernels of a step do, which ask for less
        power than products after products. On a host's own device :meth:`seconds`.
        """
        if self.device.torch_device().type != "cuda":
            return self.seconds(call)
        call()
        self.device.synchronize()
        begun = time.perf_counter()
        call()
        asking = time.perf_counter() - begun
        self.device.synchronize()
        once = max(time.perf_counter() - begun, 1e-7)
        repetitions = min(_MOST_REPETITIONS, round(_LEAST_S / once), round(_LONGEST_WAIT_S / asking))
        repetitions = max(1, repetitions)
        cycles = round(min(2 * _LONGEST_WAIT_S, 1.5 * repetitions * asking + 1e-4) * _CYCLES_PER_S)

        def series() -> float:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
            begin.record()
            for _ in range(repetitions):
                call()
            end.record()
            self.device.synchronize()
            return 1e-3 * float(begin.elapsed_time(end))

        return _settled(series) / repetitions

    def settle(self, dtype: str) -> None:
        """Wake an idle device, whose clock is a fraction of a run's."""
        if self.device.torch_device().type != "cuda":
            return
        x = self.tensor(8192, 8192, dtype=DTYPES[dtype])
        begun = time.monotonic()
        while time.monotonic() - begun < _SETTLING_S:
            x @ x
            self.device.synchronize()


def _settled(series: Callable[[], float]) -> float:
    """The median of the seconds of as many series as it takes until they lie close together, or of the most."""
    taken = [series() for _ in range(_FEWEST)]
    while len(taken) < _SERIES and max(taken) - min(taken) > _ALIKE * statistics.median(taken):
        taken.append(series())
    return statistics.median(taken)


def linear(bench: Bench, dtype: str) -> Iterator[Row]:
    """torch.nn.functional.linear of (tokens, inputs) with (outputs, inputs), and the two products of its backward."""
    widths = (64, 256, 1024) if bench.small else (512, 1024, 2048, 4096, 8192, 16384)
    tokens_of = (64, 512) if bench.small else (128, 512, 2048, 8192, 32768)
    kind = DTYPES[dtype]
    slow = dtype == "fp32" and not bench.small
    pairs = [(a, b) for a in widths for b in widths if a * b <= 2**26]
    pairs += [(a, ODD_WIDTH) for a in widths if a <= (256 if bench.small else 8192)]
    for tokens in tokens_of:
        for inputs, outputs in pairs:
            if bench.out_of_time:
                return
            if slow and tokens * inputs * outputs > 2**38:
                continue
            if tokens * max(inputs, outputs) > bench.largest:
                continue
            x, weight = bench.tensor(tokens, inputs, dtype=kind), bench.tensor(outputs, inputs, dtype=kind)
            gradient = bench.tensor(tokens, outputs, dtype=kind)
            yield {
                "dtype": dtype,
                "tokens": tokens,
                "inputs": inputs,
                "outputs": outputs,
                "forward_s": bench.device_seconds(lambda x=x, weight=weight: F.linear(x, weight)),  # type: ignore[misc]
                "grad_input_s": bench.device_seconds(lambda g=gradient, w=weight: g @ w),  # type: ignore[misc]
                "grad_weight_s": bench.device_seconds(lambda g=gradient, x=x: g.t() @ x),  # type: ignore[misc]
            }


def products(bench: Bench, dtype: str) -> Iterator[Row]:
    """The batched products of eager attention: scores (rows x rows), values, and values with the first transposed."""
    grid = (
        [(4, 64, 64), (16, 128, 64)]
        if bench.small
        else [(b, r, w) for b in (16, 64, 256, 1024) for r in (128, 512, 1024, 2048) for w in (64, 128, 512)]
    )
    kind = DTYPES[dtype]
    for batch, rows, width in grid:
        if bench.out_of_time:
            return
        if batch * rows * max(rows, width) > bench.largest // 2:
            continue
        q, k = bench.tensor(batch, rows, width, dtype=kind), bench.tensor(batch, rows, width, dtype=kind)
        scores = bench.tensor(batch, rows, rows, dtype=kind)
        yield {
            "dtype": dtype,
            "batch": batch,
            "rows": rows,
            "width": width,
            "scores_s": bench.device_seconds(lambda q=q, k=k: q @ k.transpose(-2, -1)),  # type: ignore[misc]
            "values_s": bench.device_seconds(lambda s=scores, k=k: s @ k),  # type: ignore[misc]
            "transposed_s": bench.device_seconds(lambda s=scores, k=k: s.transpose(-2, -1) @ k),  # type: ignore[misc]
        }


def fused_attention(bench: Bench, dtype: str) -> Iterator[Row]:
    """Causal scaled_dot_product_attention, with and without dropout, and its backward."""
    grid = (
        [(4, 64, 64)] if bench.small else [(b, r, w) for b in (16, 256) for r in (128, 1024, 4096) for w in (64, 128)]
    )
    kind = DTYPES[dtype]
    for batch, rows, width in sorted(grid, key=math.prod, reverse=True):  # the small ones say least
        for dropout in (0.0, 0.1):
            if bench.out_of_time:
                return
            if batch * rows * width > bench.largest or (dtype == "fp32" and batch * rows > 2**18):
                continue
            heads = min(batch, 16)
            shape = (batch // heads, heads, rows, width)
            q, k, v = (bench.tensor(*shape, dtype=kind, grad=True) for _ in range(3))

            def forward(q: Tensor = q, k: Tensor = k, v: Tensor = v, p: float = dropout) -> Tensor:
                return F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)

            result = forward()
            gradient = torch.ones_like(result)

            def backward(out: Tensor = result, g: Tensor = gradient, of: tuple[Tensor, ...] = (q, k, v)) -> object:
                return torch.autograd.grad(out, of, g, retain_graph=True)

            yield {
                "dtype": dtype,
                "batch": batch,
                "rows": rows,
                "width": width,
                "dropout": dropout,
                "forward_s": bench.device_seconds(forward),
                "backward_s": bench.device_seconds(backward),
            }


def elementwise(bench: Bench, dtype: str) -> Iterator[Row]:
    """Operators that memory limits, by the number of elements of their result."""
    kind = DTYPES[dtype]
    # Closer where a tensor outgrows the device's cache (tens of MB): a line across that edge would be too fast.
    sizes = (2**14, 2**18) if bench.small else (2**16, 2**20, 2**22, 2**23, 2**24, 2**25, 2**26, 2**28)
    for elements in sizes:
        if elements > bench.largest:
            continue
        for name, call in _operators(bench, elements, kind):
            if bench.out_of_time:
                return
            yield {"operator": name, "dtype": dtype, "elements": elements, "seconds": bench.device_seconds(call)}


def _operators(bench: Bench, elements: int, kind: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    width = 1024
    x = bench.tensor(elements // width, width, dtype=kind)
    y = bench.tensor(elements // width, width, dtype=kind)
    other = torch.float32 if kind != torch.float32 else torch.bfloat16
    samples = x.view(8, -1, width)  # one mask for all samples and heads, as a causal one is
    mask = (y > 0)[: samples.size(1)]
    yield "add", lambda: x + y
    yield from _in_place(x, y)
    yield "scale", lambda: x * 0.5
    yield "pow", lambda: torch.pow(x, 3.0)
    yield "tanh", lambda: torch.tanh(x)
    yield "tanh_backward", lambda: torch.ops.aten.tanh_backward(x, y)
    yield "gelu", lambda: F.gelu(x)
    yield "gelu_backward", lambda: torch.ops.aten.gelu_backward(x, y)
    yield "masked_fill", lambda: samples.masked_fill(mask, 0.0)
    yield from _of_scores(x, width)
    yield "copy", x.clone
    yield "cast", lambda: x.to(other)
    yield "norm", lambda: torch.linalg.vector_norm(x)
    yield "isfinite", lambda: torch.isinf(x).any()
    if x.device.type == "cuda":
        yield "dropout", lambda: torch.ops.aten.native_dropout(x, 0.1, True)
    else:
        yield "dropout", lambda: F.dropout(x, 0.1, True)
    full = y > 0
    yield "dropout_backward", lambda: torch.ops.aten.native_dropout_backward(x, full, 1.1)
    gain, bias = bench.tensor(width, dtype=kind), bench.tensor(width, dtype=kind)
    yield "layer_norm", lambda: F.layer_norm(x, (width,), gain, bias)
    out, mean, deviation = torch.native_layer_norm(x, (width,), gain, bias, 1e-5)
    ask = [True, True, True]
    yield (
        "layer_norm_backward",
        lambda: torch.ops.aten.native_layer_norm_backward(y, x, [width], mean, deviation, gain, bias, ask),
    )
    del out
    yield "column_sum", lambda: x.sum(0)
    vocabulary = min(ODD_WIDTH, elements)
    rows = max(1, elements // vocabulary)
    logits = bench.tensor(rows, vocabulary, dtype=kind)
    targets = torch.randint(vocabulary, (rows,), device=x.device)
    logarithms = torch.log_softmax(logits, -1)
    yield "log_softmax", lambda: torch.log_softmax(logits, -1)
    yield (
        "log_softmax_backward",
        lambda: torch.ops.aten._log_softmax_backward_data(logits, logarithms, -1, kind),
    )
    one = torch.ones((), dtype=kind, device=x.device)
    total = torch.tensor(float(rows), dtype=kind, device=x.device)
    yield (
        "nll_loss_backward",
        lambda: torch.ops.aten.nll_loss_backward(one, logarithms, targets, None, 1, -100, total),
    )
    indices = torch.randint(vocabulary, (max(1, elements // width),), device=x.device)
    table = bench.tensor(vocabulary, width, dtype=kind)
    yield "embedding", lambda: F.embedding(indices, table)
    yield (
        "embedding_backward",
        lambda: torch.ops.aten.embedding_dense_backward(x, indices, vocabulary, -1, False),
    )


def _in_place(x: Tensor, y: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """On a tensor of its own: one that drifts away from the size of activations changes the time of other operators."""
    changed = torch.zeros_like(x)
    yield "add_", lambda: changed.add_(y)
    yield "add_bias", lambda: changed.add_(y[0])  # DeepSpeed's linear layer: runtime/zero/linear.py, ``output += bias``
    yield "zero_", changed.zero_


def _of_scores(x: Tensor, width: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Softmax of causal scores, half of them masked: the kernel divides, and numbers near 0 take longer to divide."""
    row = torch.arange(x.size(0), device=x.device) % width
    scores = x.masked_fill(torch.arange(width, device=x.device) > row[:, None], float("-inf"))
    yield "softmax", lambda: torch.softmax(scores, -1)
    shares = torch.softmax(scores, -1)
    yield "softmax_backward", lambda: torch.ops.aten._softmax_backward_data(x, shares, -1, x.dtype)


def updates(bench: Bench) -> Iterator[Row]:
    """DeepSpeed's fused Adam on the device (CUDA), by elements of a flat fp32 tensor."""
    if bench.device.torch_device().type != "cuda":
        return
    from deepspeed.ops.adam import FusedAdam

    for elements in (2**20, 2**24, 2**27):
        if bench.out_of_time or 4 * elements > bench.largest:
            return
        parameter = torch.nn.Parameter(bench.tensor(elements))
        parameter.grad = bench.tensor(elements)
        optimizer = FusedAdam([parameter], lr=1e-4)
        yield {"operator": "fused_adam", "elements": elements, "seconds": bench.device_seconds(optimizer.step)}


def launches(bench: Bench) -> Iterator[Row]:
    """Host seconds to ask for one small operator: without a wait, as the forward pass asks."""
    x = bench.tensor(64)
    bench.device.synchronize()
    for _ in range(2):
        begun = time.perf_counter()
        for _ in range(500):
            x + 1.0
        seconds = (time.perf_counter() - begun) / 500
        bench.device.synchronize()
    yield {"operator": "launch", "seconds": seconds}
