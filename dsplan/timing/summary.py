"""What a profile says in a few figures: the highest rate of each part of the machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dsplan.timing.profile import Profile

#: Bytes that a copy of an element of each kind reads and writes.
_COPIED = {"bf16": 4, "fp16": 4, "fp32": 8}


def summary(profile: Profile) -> dict[str, float]:
    """The highest measured rate of each part, by its words and unit; parts that were not measured are left out."""
    document = profile.document
    found: dict[str, float] = {}

    def keep(words: str, values: Iterable[float]) -> None:
        rates = list(values)
        if rates:
            found[words] = max(rates)

    for dtype in ("bf16", "fp16", "fp32"):
        rows = [row for row in document["linear"] if row["dtype"] == dtype]
        keep(f"matrix products in {dtype}, TFLOPS", (_products(row) / row["forward_s"] / 1e12 for row in rows))
    copies = [row for row in document["elementwise"] if row["operator"] == "copy"]
    keep(
        "device memory, copied, GB/s",
        (_COPIED[row["dtype"]] * row["elements"] / row["seconds"] / 1e9 for row in copies),
    )
    for direction, words in (("to_device", "host to device"), ("to_host", "device to host")):
        rows = [row for row in document["host_link"] if row["direction"] == direction and row["pinned"]]
        keep(f"{words}, pinned, GB/s", (row["bytes"] / row["seconds"] / 1e9 for row in rows))
    for operator in ("all_reduce", "all_gather"):
        rows = [row for row in document["collectives"] if row["operator"] == operator]
        keep(
            f"{operator.replace('_', '-')}, moved per rank, GB/s", (_moved(row) / row["seconds"] / 1e9 for row in rows)
        )
    adam = [row for row in document["host"] if row["operator"] == "cpu_adam"]
    keep("CPU Adam, billion parameters a second", (row["elements"] / row["seconds"] / 1e9 for row in adam))
    for words, key in (("read", "read_bytes_per_s"), ("written", "write_bytes_per_s")):
        keep(f"drive, {words}, GB/s", (row[key] / 1e9 for row in document["drive"]))
    return found


def _products(row: dict[str, Any]) -> float:
    return float(2 * row["tokens"] * row["inputs"] * row["outputs"])


def _moved(row: dict[str, Any]) -> float:
    passes = 2 if row["operator"] == "all_reduce" else 1
    return float(passes * (row["world_size"] - 1) / row["world_size"] * row["bytes"])
