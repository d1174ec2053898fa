"""Profile: how long the parts of a machine take, each alone: measured (``python -m runner.calibrate``) or nominal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from dsplan.errors import InputError
from dsplan.records import read_record
from dsplan.timing.grid import Grid, Line, of_the_device

_T = TypeVar("_T")

#: Widths that tensor cores like are multiples of 16 bytes (cuBLAS documentation, tensor core usage).
_ALIGNED = 8


class NoDriveError(InputError):
    """A strategy reads or writes a drive, and the profile has none."""


@dataclass(slots=True, kw_only=True)
class Profile:
    """Times of a machine's parts, in seconds.

    Attributes:
        name: of the profile.
        label: of the device that it was measured on.
        document: the profile as read.
    """

    name: str
    label: str
    document: Mapping[str, Any]
    _cache: dict[Any, Any] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """Whether it was measured, and is not made of data sheets."""
        return "versions" in self.document

    @property
    def asked(self) -> bool:
        """Whether small sizes were paced by the host that asked for them: on a device of its own."""
        return self.measured and bool(self.document["device"]["kind"] != "cpu")

    @property
    def description(self) -> str:
        """The name, and of a measured profile where, when and with what it was measured."""
        if not self.measured:
            return self.name
        document = self.document
        count = f"{document['gpus']} x " if document["gpus"] > 1 else ""
        versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
        return f"{self.name} ({count}{self.label}, {document['created'][:10]}; {versions or 'versions unknown'})"

    @property
    def launch_s(self) -> float:
        """Host seconds to ask for one operator."""
        return float(self.document["launch"][0]["seconds"])

    def linear(self, dtype: str, tokens: int, inputs: int, outputs: int) -> tuple[float, float, float]:
        """Forward, gradient of the input and gradient of the weight of a linear layer on ``tokens`` rows."""
        key = ("linear", dtype, tokens, inputs, outputs)
        return self.once(key, partial(self._linear, dtype, tokens, inputs, outputs))

    def _linear(self, dtype: str, tokens: int, inputs: int, outputs: int) -> tuple[float, float, float]:
        dtype = self._measured_dtype("linear", dtype)
        aligned = self._linear_grids(dtype, odd=False)
        forward, grad_input, grad_weight = (grid.at(tokens, inputs, outputs) for grid in aligned)
        if dtype == "fp32" or not (inputs % _ALIGNED or outputs % _ALIGNED):
            return forward, grad_input, grad_weight
        # Measured with one odd width only: what that costs is carried over to others as a ratio.
        odd = self._linear_grids(dtype, odd=True)
        width = self.once(("odd width", dtype), partial(self._odd_width, dtype))
        if width is None:
            return forward, grad_input, grad_weight
        other = inputs if outputs % _ALIGNED else outputs
        factors = [
            max(1.0, one.at(tokens, other, width) / even.at(tokens, other, width))
            for one, even in zip(odd, aligned, strict=True)
        ]
        return forward * factors[0], grad_input * factors[1], grad_weight * factors[2]

    def _odd_width(self, dtype: str) -> int | None:
        """The outputs, divided by no power of two, that the linear layer was measured with; None: with none."""
        rows = (row["outputs"] for row in self.document["linear"] if row["dtype"] == dtype)
        return next((outputs for outputs in rows if outputs % _ALIGNED), None)

    def _linear_grids(self, dtype: str, *, odd: bool) -> list[Grid]:
        def make() -> list[Grid]:
            rows = [row for row in self.document["linear"] if row["dtype"] == dtype]
            chosen = [row for row in rows if bool(row["outputs"] % _ALIGNED) == odd] or rows
            return [
                Grid({(row["tokens"], row["inputs"], row["outputs"]): row[name] for row in chosen}, asked=self.asked)
                for name in ("forward_s", "grad_input_s", "grad_weight_s")
            ]

        return self.once(("linear grids", dtype, odd), make)

    def products(self, dtype: str, batch: int, rows: int, width: int) -> tuple[float, float, float]:
        """Scores (rows x width by its transpose), values (rows x rows by rows x width), values transposed."""
        dtype = self._measured_dtype("products", dtype)
        scores, values, transposed = (
            self._grid("products", name, dtype).at(batch, rows, width)
            for name in ("scores_s", "values_s", "transposed_s")
        )
        return scores, values, transposed

    def fused_attention(self, dtype: str, batch: int, rows: int, width: int, dropout: bool) -> tuple[float, float]:
        """Forward and backward of torch's fused causal attention over ``batch`` heads."""
        dtype = self._measured_dtype("fused_attention", dtype)

        def grid(name: str) -> Grid:
            rows_ = [
                row
                for row in self.document["fused_attention"]
                if row["dtype"] == dtype and (row["dropout"] > 0) == dropout
            ]
            times = {(row["batch"], row["rows"], row["width"]): row[name] for row in rows_}
            if self.asked:
                # The host needs as long for every dtype, and a short calibration lacks the small sizes of some.
                shortest = min(row[name] for row in self.document["fused_attention"])
                times = of_the_device(times, lambda sizes: sizes[0] * sizes[1] ** 2 * sizes[2], shortest)
            # The work of attention grows with the square of the rows: the grid holds them twice.
            return Grid({sizes: seconds / sizes[1] for sizes, seconds in times.items()}, scales=self.asked)

        forward, backward = (
            self.once(("fused", name, dtype, dropout), partial(grid, name)).at(batch, rows, width) * rows
            for name in ("forward_s", "backward_s")
        )
        return forward, backward

    def elementwise(self, operator: str, dtype: str, elements: float) -> float:
        """An operator that memory limits, over ``elements`` of its input."""
        dtype = self._measured_dtype("elementwise", dtype)

        def make() -> Line:
            rows = [row for row in self.document["elementwise"] if row["dtype"] == dtype]
            points = [(row["elements"], row["seconds"]) for row in rows if row["operator"] == operator]
            if not points:
                known = {row["operator"] for row in rows}
                raise InputError(f"profile {self.name}: it lacks the operator {operator}; it has {sorted(known)}")
            return Line(points, asked=self.asked)

        return self.once(("elementwise", operator, dtype), make).at(elements)

    def has_operator(self, operator: str, dtype: str) -> bool:
        """Whether :meth:`elementwise` knows ``operator``."""
        kind = self._measured_dtype("elementwise", dtype)

        def find() -> bool:
            rows = self.document["elementwise"]
            return any(row["operator"] == operator and row["dtype"] == kind for row in rows)

        return self.once(("has operator", operator, kind), find)

    def update(self, elements: float) -> float:
        """DeepSpeed's fused Adam over ``elements`` parameters in fp32."""
        rows = self.document["optimizer"]
        if not rows:  # a profile of a CPU: the step is the host's
            return self.host("cpu_adam", elements)
        points = [(row["elements"], row["seconds"]) for row in rows]
        line = self.once("update", lambda: Line(points, asked=self.asked))
        return line.at(elements)

    def copy(self, direction: str, size: float, *, pinned: bool) -> float:
        """A copy of ``size`` bytes ``to_device`` or ``to_host``; no time where host and device are one."""
        rows = [row for row in self.document["host_link"] if row["direction"] == direction and row["pinned"] == pinned]
        if not rows:
            return 0.0
        line = self.once(("copy", direction, pinned), lambda: Line([(row["bytes"], row["seconds"]) for row in rows]))
        return line.at(size)

    def host(self, operator: str, elements: float, *, threads: int | None = None) -> float:
        """An operator on the host over ``elements``, with all cores or with ``threads`` of them as measured."""
        rows = [row for row in self.document["host"] if row["operator"] == operator]
        wanted = max((row["threads"] for row in rows), default=0) if threads is None else threads
        points = [(row["elements"], row["seconds"]) for row in rows if row["threads"] == wanted]
        if not points:
            with_threads = "" if threads is None else f" with {threads} threads"
            raise InputError(f"profile {self.name}: it lacks the host's {operator}{with_threads}; calibrate again")
        return self.once(("host", operator, wanted), lambda: Line(points)).at(elements)

    @property
    def drive(self) -> tuple[float, float]:
        """Bytes per second of reading and writing the NVMe drive.

        Raises:
            NoDriveError: none was measured.
        """
        if not self.document["drive"]:
            raise NoDriveError(
                f"profile {self.name}: no drive was measured; measure one with dsplan verify --calibrate --nvme-path, "
                "or take data sheets with --profile nominal"
            )
        row = self.document["drive"][0]
        return float(row["read_bytes_per_s"]), float(row["write_bytes_per_s"])

    # What the lines and grids are made of.

    def _grid(self, table: str, name: str, dtype: str) -> Grid:
        def make() -> Grid:
            rows = [row for row in self.document[table] if row["dtype"] == dtype]
            return Grid({(row["batch"], row["rows"], row["width"]): row[name] for row in rows}, asked=self.asked)

        return self.once((table, name, dtype), make)

    def _measured_dtype(self, table: str, dtype: str) -> str:
        """``dtype``, or the other half precision where only that was measured: tensor cores run both at one rate."""
        known = self.once(("dtypes", table), lambda: {row["dtype"] for row in self.document[table]})
        if dtype in known:
            return dtype
        other = {"fp16": "bf16", "bf16": "fp16"}.get(dtype, "")
        if other not in known:
            raise InputError(f"profile {self.name}: it has no times of {dtype} in {table}; calibrate again")
        return other

    def once(self, key: Any, make: Callable[[], _T]) -> _T:
        """What ``make`` gives, kept under ``key`` for as long as the profile."""
        if key not in self._cache:
            self._cache[key] = make()
        return cast(_T, self._cache[key])


def read_profile(path: Path | str) -> Profile:
    """The profile in a file.

    Raises:
        InputError: it cannot be read or is not a profile (file and key are named).
    """
    return profile_of(read_record(path, "profile"))


def profile_of(document: Mapping[str, Any]) -> Profile:
    """The profile in a document that is valid under ``schemas/profile.schema.json``."""
    return Profile(name=document["name"], label=document["device"]["name"], document=document)
