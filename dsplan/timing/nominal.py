"""A profile without a measurement: data sheets, and the shares of them that others have measured.

Every figure is in ``catalog/rates.json`` with its source, but for the host's time to ask for a block, of which there is
no data sheet: that is of a profile that ships. A measured profile (``python -m runner.calibrate``) says
more: how products of odd widths, small kernels and the host of the very machine do.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any

from dsplan.timing.profile import Profile
from dsplan.timing.profiles import shipped

#: Bytes that an operator reads and writes for each element of its input, in elements; and bytes beside them.
_TRAFFIC: dict[str, tuple[float, float]] = {
    "add": (3, 0), "add_": (3, 0), "add_bias": (2, 0), "scale": (2, 0), "pow": (2, 0), "tanh": (2, 0),
    "tanh_backward": (3, 0), "gelu": (2, 0), "gelu_backward": (3, 0), "masked_fill": (2, 0), "softmax": (2, 0),
    "softmax_backward": (3, 0),
    "copy": (2, 0), "cast": (0, 6), "zero_": (1, 0), "norm": (1, 0), "isfinite": (1, 0), "dropout": (2, 1),
    "dropout_backward": (2, 1), "layer_norm": (2, 0), "layer_norm_backward": (5, 0), "column_sum": (1, 0),
    "log_softmax": (3, 0), "log_softmax_backward": (3, 0), "nll_loss_backward": (1, 0), "embedding": (2, 0),
    "embedding_backward": (2, 0),
}  # fmt: skip
#: Adam reads parameter, gradient and two moments and writes three of them, in fp32.
_ADAM_BYTES = 28
_BYTES = {"bf16": 2, "fp32": 4}
_SIZES = tuple(2**power for power in range(12, 32, 2))
#: The shipped profile whose host stands for those that nobody has measured: the seconds of DeepSpeed's Python code, of
#: hooks and launches, which the device has no part in.
_HOST = "h200"


@cache
def catalogue() -> dict[str, Any]:
    """``catalog/rates.json``; callers must not change it."""
    document: dict[str, Any] = json.loads((files("dsplan") / "catalog" / "rates.json").read_text(encoding="utf-8"))
    return document


@cache
def nominal(name: str) -> Profile:
    """The profile of the catalogued device ``name``, which must have rates."""
    rates = next(entry for entry in catalogue()["rates"] if entry["name"] == name)
    return Profile(name=f"nominal {name}", label=name, document=_document(rates))


def _document(rates: dict[str, Any]) -> dict[str, Any]:
    achieved = {key: entry["value"] for key, entry in catalogue()["achieved"].items()}
    flops = {"bf16": achieved["half"] * rates["half_flops"], "fp32": achieved["single"] * rates["single_flops"]}
    memory, shortest = achieved["memory"] * rates["memory_bytes_per_s"], achieved["kernel_s"]

    def kernel(operations: float, traffic: float, rate: float) -> float:
        return float(max(operations / rate, traffic / memory, shortest))

    def matrices(dtype: str, *sizes: int) -> float:
        m, n, k = sizes[-3:]
        batch = sizes[0] if len(sizes) == 4 else 1
        traffic = batch * _BYTES[dtype] * (m * n + m * k + n * k)
        return kernel(2.0 * batch * m * n * k, traffic, flops[dtype])

    def attention(dtype: str, batch: int, rows: int, width: int, passes: float, share: str) -> float:
        rate = min(flops[dtype], achieved[share] * rates["half_flops"])
        causal = passes * 2 * 2.0 * batch * rows * rows * width / 2
        return kernel(causal, 4.0 * _BYTES[dtype] * batch * rows * width, rate)

    grid = list(product((16, 256, 2048), (128, 512, 2048, 8192), (64, 128, 512)))
    return {
        "gpus": achieved["cpu_adam_gpus"],
        "linear": [
            {
                **{"dtype": dtype, "tokens": tokens, "inputs": inputs, "outputs": outputs},
                "forward_s": matrices(dtype, tokens, outputs, inputs),
                "grad_input_s": matrices(dtype, tokens, inputs, outputs),
                "grad_weight_s": matrices(dtype, outputs, inputs, tokens),
            }
            for dtype, tokens, inputs, outputs in product(
                _BYTES, (64, 256, 1024, 4096, 16384, 65536), (64, 512, 2048, 8192, 32768), (64, 512, 2048, 8192, 65536)
            )
        ],
        "products": [
            {
                **{"dtype": dtype, "batch": batch, "rows": rows, "width": width},
                "scores_s": matrices(dtype, batch, rows, rows, width),
                "values_s": matrices(dtype, batch, rows, width, rows),
                "transposed_s": matrices(dtype, batch, rows, width, rows),
            }
            for dtype, (batch, rows, width) in product(_BYTES, grid)
        ],
        "fused_attention": [
            {
                **{"dtype": dtype, "batch": batch, "rows": rows, "width": width, "dropout": dropout},
                "forward_s": attention(dtype, batch, rows, width, 1, "attention_forward"),
                "backward_s": attention(dtype, batch, rows, width, 2.5, "attention_backward"),
            }
            for dtype, dropout, (batch, rows, width) in product(_BYTES, (0.0, 0.1), grid)
        ],
        "elementwise": [
            {
                **{"operator": operator, "dtype": dtype, "elements": elements},
                "seconds": kernel(0, elements * (per * _BYTES[dtype] + beside), 1.0),
            }
            for (operator, (per, beside)), dtype, elements in product(_TRAFFIC.items(), _BYTES, _SIZES)
        ],
        "optimizer": [
            {"operator": "fused_adam", "elements": elements, "seconds": kernel(0, _ADAM_BYTES * elements, 1.0)}
            for elements in _SIZES
        ],
        "launch": [{"operator": "launch", "seconds": achieved["launch_s"]}],
        "host_link": [
            {
                **{"direction": direction, "pinned": pinned, "bytes": size},
                # What is not pinned goes through a pinned buffer: twice over the host's memory and once over the link.
                "seconds": achieved["launch_s"]
                + size / (achieved["host_link"] * rates["host_link_bytes_per_s"]) * (1 if pinned else 2),
            }
            for direction, pinned, size in product(("to_device", "to_host"), (True, False), _SIZES)
        ],
        "host": [
            {
                **{"operator": operator, "elements": elements, "threads": 0},
                "seconds": achieved["cpu_adam_s"] * traffic / _ADAM_BYTES * elements,
            }
            for (operator, traffic), elements in product(
                {"cpu_adam": _ADAM_BYTES, "scale_": 8, "cast": 6, "norm": 4, "copy_": 8}.items(), _SIZES
            )
        ],
        "collectives": [],
        "drive": [
            {
                "read_bytes_per_s": achieved["drive_read_bytes_per_s"],
                "write_bytes_per_s": achieved["drive_write_bytes_per_s"],
            }
        ],
        "engine": _engine(),
    }


def _engine() -> list[dict[str, Any]]:
    """What asking costs the host, by strategy and depth, which no data sheet says: of a shipped calibration."""
    measured = shipped(_HOST)
    assert measured is not None
    rows: list[dict[str, Any]] = measured.document["engine"]
    return rows
