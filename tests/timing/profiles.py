"""A made-up machine with round rates, so that what a test expects can be computed by hand."""

from __future__ import annotations

from itertools import product
from typing import Any

from dsplan.timing.profile import Profile

HALF, SINGLE, BANDWIDTH = 500e12, 50e12, 3e12  # operations and bytes per second
HOST_LINK, LINK, LATENCY = 50e9, 200e9, 20e-6
LAUNCH = 5e-6
#: Host seconds of a block in forward, backward and step; stage 3 takes four times as long.
BLOCK_S = {"forward_s": 1e-3, "backward_s": 1.5e-3, "step_s": 0.5e-3}
STRATEGIES = ("zero0", "zero1", "zero2", "zero3", "zero2-offload", "zero3-offload", "zero3-offload-param")
OPERATORS = (
    "add", "add_", "add_bias", "scale", "pow", "tanh", "tanh_backward", "gelu", "gelu_backward", "masked_fill",
    "softmax", "softmax_backward", "copy", "cast", "zero_", "norm", "isfinite", "dropout", "dropout_backward",
    "layer_norm", "layer_norm_backward", "column_sum", "log_softmax", "log_softmax_backward", "nll_loss_backward",
    "embedding", "embedding_backward",
)  # fmt: skip


def document(ranks: int = 2) -> dict[str, Any]:
    """The profile's document; every time is work by rate, at least the launch."""

    def seconds(work: float, rate: float) -> float:
        return max(LAUNCH, work / rate)

    rates = {"bf16": HALF, "fp32": SINGLE}
    bytes_of = {"bf16": 2, "fp32": 4}
    linear, products, fused, elementwise = [], [], [], []
    for dtype, rate in rates.items():
        for tokens, inputs, outputs in product((128, 2048, 32768), (64, 1024, 16384), (64, 1024, 16384, 50257)):
            once = seconds(2.0 * tokens * inputs * outputs, rate)
            names = ("forward_s", "grad_input_s", "grad_weight_s")
            linear.append(
                {"dtype": dtype, "tokens": tokens, "inputs": inputs, "outputs": outputs, **dict.fromkeys(names, once)}
            )
        for batch, rows, width in product((16, 1024), (128, 2048), (64, 512)):
            once = seconds(2.0 * batch * rows * rows * width, rate)
            where = {"dtype": dtype, "batch": batch, "rows": rows, "width": width}
            products.append({**where, **dict.fromkeys(("scores_s", "values_s", "transposed_s"), once)})
            for dropout in (0.0, 0.1):
                fused.append({**where, "dropout": dropout, "forward_s": once, "backward_s": 2.5 * once})
        for operator, elements in product(OPERATORS, (2**16, 2**22, 2**28)):
            once = seconds(3.0 * elements * bytes_of[dtype], BANDWIDTH)
            elementwise.append({"operator": operator, "dtype": dtype, "elements": elements, "seconds": once})
    sizes = tuple(2**power for power in range(12, 32, 2))
    return {
        "schema_version": 1,
        "dsplan_version": "0",
        "name": "made-up",
        "created": "2026-01-01T00:00:00+00:00",
        "gpus": ranks,
        "cores": 8,
        "device": {"kind": "cuda", "name": "made up", "memory_bytes": 80 * 2**30},
        "versions": {},
        "linear": linear,
        "products": products,
        "fused_attention": fused,
        "elementwise": elementwise,
        "optimizer": [
            {"operator": "fused_adam", "elements": n, "seconds": seconds(28.0 * n, BANDWIDTH)} for n in (2**20, 2**27)
        ],
        "launch": [{"operator": "launch", "seconds": LAUNCH}],
        "host_link": [
            {"direction": way, "pinned": pinned, "bytes": n, "seconds": n / HOST_LINK * (1 if pinned else 4)}
            for way, pinned, n in product(("to_device", "to_host"), (True, False), sizes)
        ],
        "host": [
            {"operator": name, "elements": n, "seconds": n / 1e9, "threads": 8}
            for name, n in product(("cpu_adam", "scale_", "cast", "norm", "copy_"), sizes)
        ],
        "collectives": [
            {
                "operator": name,
                "world_size": ranks,
                "bytes": n,
                "seconds": LATENCY + (2 if name == "all_reduce" else 1) * (ranks - 1) / ranks * n / LINK,
            }
            for name, n in product(("all_reduce", "all_gather", "reduce_scatter"), sizes)
        ],
        "drive": [{"read_bytes_per_s": 5e9, "write_bytes_per_s": 3e9, "bytes": 2**28}],
        "engine": [
            *(_engine(strategy, kind, depth) for strategy, kind, depth in product(STRATEGIES, (0, 1), (2, 8))),
            *(
                _engine("zero0", 0, depth, *operators)
                for operators, depth in product((("eager", "gelu"), ("sdpa", "gelu_new")), (2, 8))
            ),
        ],
    }


def _engine(
    strategy: str, recomputes: int, depth: int, attention: str = "sdpa", activation: str = "gelu"
) -> dict[str, Any]:
    factor = 4.0 if strategy.startswith("zero3") else 1.0 if (attention, activation) == ("sdpa", "gelu") else 1.25
    phases = {name: factor * (1 + depth * once / 1e-3) * 1e-3 for name, once in BLOCK_S.items()}
    if recomputes:
        phases["backward_s"] += factor * depth * BLOCK_S["forward_s"]
    return {
        "strategy": strategy,
        "checkpointing": "torch" if recomputes else "none",
        "attention": attention,
        "activation": activation,
        "world_size": 1,
        "num_layers": depth,
        "seconds": sum(phases.values()),
        **phases,
    }


def profile() -> Profile:
    """The made-up machine."""
    made = document()
    return Profile(name=made["name"], label=made["device"]["name"], document=made)
