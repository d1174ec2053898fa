"""What torch's CUDA allocator really does: ``python -m tests.gpu.traces OUTPUT.json`` (about 40 s on one GPU).

Runs the scripted sequences of :func:`sequences` against ``torch.cuda``, one subprocess for each allocator
configuration, and records after every operation the bytes allocated, reserved and active, where every block was put,
and at the end the peaks, the counters and the segments. ``tests/allocator/test_traces.py`` replays
the record without a GPU.

Operations: ``["alloc", id, bytes, stream]``, ``["free", id]`` (no effect when the allocation failed),
``["record_stream", id, stream]``, ``["empty_cache"]``, ``["busy", stream]`` (the stream works until ``["wait"]``,
so blocks freed meanwhile stay pending) and ``["wait"]``. Streams are numbers: 0 is the default stream.
"""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.gpu.header import header, write_rows

KIB, MIB, GIB = 1024, 1024**2, 1024**3
NUM_STREAMS = 4
BUSY_CYCLES = 1_500_000_000  # of torch.cuda._sleep: about a second, more than a sequence takes until its wait

Operation = list[Any]
Sequence = dict[str, Any]

#: Configurations; each runs in a process of its own.
CONFIGURATIONS = (
    "",
    "expandable_segments:True",
    "max_split_size_mb:64",
    "max_split_size_mb:40,max_non_split_rounding_mb:64",
    "garbage_collection_threshold:0.6",
    "roundup_power2_divisions:4",
    "roundup_power2_divisions:[1:2,64:8,256:4,>:2]",
    "large_segment_size_mb:32",
)


class Script:
    """Builds one sequence; ids count up, and what is live is known."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.operations: list[Operation] = []
        self.live: dict[int, int] = {}
        self._next = 0

    def alloc(self, size: int, stream: int = 0) -> int:
        self._next += 1
        self.operations.append(["alloc", self._next, size, stream])
        self.live[self._next] = size
        return self._next

    def free(self, number: int) -> None:
        self.operations.append(["free", number])
        del self.live[number]

    def op(self, *operation: Any) -> None:
        self.operations.append(list(operation))

    def free_all(self) -> None:
        for number in list(self.live):
            self.free(number)


def sizes_step_by_step(seed: int) -> Script:
    """Every threshold from both sides, each alone, then all freed in a shuffled order."""
    script = Script(seed)
    edges = [1, 512, 4 * KIB, MIB, 2 * MIB, 9 * MIB, 10 * MIB, 11 * MIB, 20 * MIB, 32 * MIB, 64 * MIB, 100 * MIB]
    for edge in edges:
        for size in (edge - 1, edge, edge + 1):
            script.alloc(size)
    numbers = list(script.live)
    script.random.shuffle(numbers)
    for number in numbers:
        script.free(number)
        if script.random.random() < 0.3:
            script.alloc(script.random.choice(edges))
    return script


def churn(seed: int, largest: int, budget: int, steps: int = 350, streams: int = 1) -> Script:
    """Random allocations and frees with sizes spread over powers of two, below ``budget`` bytes in all."""
    script = Script(seed)
    rng = script.random
    for _ in range(steps):
        size = int(2 ** rng.uniform(9, largest.bit_length() - 1)) + rng.choice((0, 0, 1, 511))
        full = sum(script.live.values()) + size > budget
        if script.live and (full or rng.random() < 0.45):
            script.free(rng.choice(list(script.live)))
        else:
            script.alloc(size, rng.randrange(streams))
        if rng.random() < 0.01:
            script.op("empty_cache")
    return script


def training(seed: int, width: int, layers: int, micro_batch: int, *, steps: int = 3) -> Script:
    """A transformer's training: parameters, activations saved and freed in reverse, gradients, Adam's moments."""
    script = Script(seed)
    tokens = micro_batch * 512
    shapes = [3 * width * width * 2, width * width * 2, 4 * width * width * 2, 4 * width * width * 2, width * 2]
    for _ in range(layers):
        for size in shapes:
            script.alloc(size)
    moments = False
    for _ in range(steps):
        saved = []
        for _ in range(layers):
            for factor in (2, 6, 2, 2, 8, 8, 2):
                saved.append(script.alloc(tokens * width * factor))
            script.free(script.alloc(tokens * width * 4))  # a temporary
        gradients = []
        for _ in range(layers):
            for factor in (8, 2, 2):
                script.free(script.alloc(tokens * width * factor + script.random.choice((0, 512))))
            for _ in range(7):
                script.free(saved.pop())
            gradients += [script.alloc(size) for size in shapes]
        if not moments:
            for size in shapes * layers:
                script.alloc(2 * size)
                script.alloc(2 * size)
            moments = True
        for number in gradients:
            script.free(number)
    return script


def streams(seed: int) -> Script:
    """Blocks used on other streams: freed while these are idle, and while they are busy."""
    script = Script(seed)
    rng = script.random
    for _ in range(60):
        number = script.alloc(int(2 ** rng.uniform(9, 26)), rng.randrange(NUM_STREAMS))
        for other in rng.sample(range(NUM_STREAMS), rng.randrange(3)):
            script.op("record_stream", number, other)
        if len(script.live) > 8:
            script.free(rng.choice(list(script.live)))
    script.op("busy", 1)
    for _ in range(12):
        number = script.alloc(int(2 ** rng.uniform(18, 26)))
        script.op("record_stream", number, 1)
        if rng.random() < 0.5:
            script.op("record_stream", number, 2)
        script.free(number)
        script.free(script.alloc(int(2 ** rng.uniform(18, 26))))
    script.op("wait")
    script.alloc(MIB)
    script.op("empty_cache")
    script.free_all()
    return script


def pressure(seed: int, cap: int, steps: int = 300) -> Script:
    """Random sizes around the cap: cached segments have to be given back, and some allocations fail."""
    script = Script(seed)
    rng = script.random
    for _ in range(steps):
        size = int(2 ** rng.uniform(12, cap.bit_length() - 2))
        if script.live and rng.random() < 0.4 + 0.4 * (sum(script.live.values()) > cap * 0.8):
            script.free(rng.choice(list(script.live)))
        else:
            number = script.alloc(size, int(rng.random() < 0.1))
            if sum(script.live.values()) > cap * 1.2:  # the last one failed, most likely
                script.free(number)
    return script


def sequences() -> list[Sequence]:
    """All sequences: name, configuration, cap in bytes (None: none) and operations."""
    scripts: list[tuple[str, str, int | None, Script]] = []
    for number, configuration in enumerate(CONFIGURATIONS):
        seed = 100 * number
        odd = (768 + 1) * MIB  # caps lie between multiples of 2 MiB, so a byte of rounding does not matter
        scripts += [
            ("sizes", configuration, None, sizes_step_by_step(seed)),
            ("churn", configuration, None, churn(seed + 1, 512 * MIB, 4 * GIB)),
            ("pressure", configuration, odd, pressure(seed + 2, odd)),
        ]
        if number < 2:
            scripts += [
                ("small churn", configuration, None, churn(seed + 3, 2 * MIB, 64 * MIB)),
                ("large churn", configuration, None, churn(seed + 4, 2 * GIB, 12 * GIB, steps=200)),
                ("training", configuration, None, training(seed + 5, 1024, 4, 2)),
                ("wide training", configuration, None, training(seed + 6, 1600, 3, 3)),
                ("stream churn", configuration, None, churn(seed + 7, 128 * MIB, GIB, streams=NUM_STREAMS)),
                ("streams", configuration, None, streams(seed + 8)),
                ("capped training", configuration, 257 * MIB, training(seed + 9, 1024, 4, 1)),
            ]
    # Those with a cap come last: once set, it cannot be taken back within a process.
    scripts.sort(key=lambda entry: (CONFIGURATIONS.index(entry[1]), entry[2] is not None))
    return [
        {"name": name, "configuration": configuration, "cap_bytes": cap, "operations": script.operations}
        for name, configuration, cap, script in scripts
    ]


def _levels(torch: Any) -> list[int]:
    stats = torch.cuda.memory_stats()
    return [stats[f"{name}_bytes.all.current"] for name in ("allocated", "reserved", "active")]


def _segments(torch: Any, names: dict[int, int]) -> list[Any]:
    """The segments by address: [stream, is large, bytes, [[bytes, state, requested], ...]]."""
    states = {"active_allocated": "allocated", "active_pending_free": "pending", "inactive": "free"}
    found = []
    for segment in sorted(torch.cuda.memory._snapshot()["segments"], key=lambda segment: segment["address"]):
        blocks = []
        for block in segment["blocks"]:
            state = states.get(block["state"], "pending")  # active_awaiting_free in some versions
            blocks.append([block["size"], state, block["requested_size"] if state != "free" else 0])
        found.append([names[segment["stream"]], segment["segment_type"] == "large", segment["total_size"], blocks])
    return found


def run(torch: Any, sequence: Sequence, lanes: list[Any]) -> Sequence:
    """Run one sequence on an empty allocator and add what was seen."""
    total = torch.cuda.get_device_properties(0).total_memory
    if sequence["cap_bytes"] is not None:
        torch.cuda.set_per_process_memory_fraction(sequence["cap_bytes"] / total)
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.reset_accumulated_memory_stats()
    tensors: dict[int, Any] = {}
    recorded: set[int] = set()
    busy = False
    levels, failed, addresses = [], [], {}
    for place, (kind, *rest) in enumerate(sequence["operations"]):
        if kind == "alloc":
            number, size, stream = rest
            try:
                with torch.cuda.stream(lanes[stream]):
                    tensors[number] = torch.empty(size, dtype=torch.uint8, device="cuda")
                addresses[place] = tensors[number].data_ptr()
            except torch.OutOfMemoryError:
                failed.append(place)
        elif kind == "free":
            tensors.pop(rest[0], None)
            if rest[0] in recorded and not busy:
                torch.cuda.synchronize()  # the events are done before the next allocation asks
        elif kind == "record_stream" and rest[0] in tensors:
            tensors[rest[0]].record_stream(lanes[rest[1]])
            recorded.add(rest[0])
        elif kind == "empty_cache":
            torch.cuda.empty_cache()
        elif kind == "busy":
            busy = True
            with torch.cuda.stream(lanes[rest[0]]):
                torch.cuda._sleep(BUSY_CYCLES)
        elif kind == "wait":
            busy = False
            torch.cuda.synchronize()
        levels.append(_levels(torch))
    stats = torch.cuda.memory_stats()
    record = {
        **sequence,
        "levels": levels,
        "failed": failed,
        "addresses": [addresses.get(place) for place in range(len(levels))],
        "segments": _segments(torch, {lane.cuda_stream: number for number, lane in enumerate(lanes)}),
        "end": {
            "peak_allocated_bytes": stats["allocated_bytes.all.peak"],
            "peak_reserved_bytes": stats["reserved_bytes.all.peak"],
            "peak_active_bytes": stats["active_bytes.all.peak"],
            "requested_bytes": stats["requested_bytes.all.current"],
            "inactive_split_bytes": stats["inactive_split_bytes.all.current"],
            "num_segments": stats["segment.all.current"],
            "num_alloc_retries": stats["num_alloc_retries"],
            "num_ooms": stats["num_ooms"],
        },
    }
    tensors.clear()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == 0, f"{sequence['name']}: {torch.cuda.memory_reserved()} bytes stay"
    return record


def work(configuration: str) -> None:
    """The child: run the sequences of one configuration and print the records as JSON."""
    import torch

    torch.cuda.init()
    lanes = [torch.cuda.default_stream(), *(torch.cuda.Stream() for _ in range(NUM_STREAMS - 1))]
    mine = [sequence for sequence in sequences() if sequence["configuration"] == configuration]
    about = {"device": torch.cuda.get_device_name(), "versions": {"torch": torch.__version__}}
    print(json.dumps([about, *(run(torch, sequence, lanes) for sequence in mine)]))


def main() -> None:
    children = []
    for configuration in CONFIGURATIONS:
        environment = {key: value for key, value in os.environ.items() if not key.endswith("_ALLOC_CONF")}
        if configuration:
            environment["PYTORCH_ALLOC_CONF"] = environment["PYTORCH_CUDA_ALLOC_CONF"] = configuration
        command = [sys.executable, "-m", "tests.gpu.traces", "--work", configuration]
        children.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    records: list[Sequence] = []
    about: dict[str, Any] = {"device": "", "versions": {}}
    for child, configuration in zip(children, CONFIGURATIONS, strict=True):
        printed, _ = child.communicate(timeout=300)
        if child.returncode != 0:
            print(f"{configuration or 'default'}: exit code {child.returncode}", file=sys.stderr)
            continue
        about, *more = json.loads(printed.splitlines()[-1])
        records += more
    write_rows(Path(sys.argv[1]), header("python -m tests.gpu.traces", **about), records, key="sequences")
    print(f"{len(records)} of {len(sequences())} sequences, {Path(sys.argv[1]).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        work(sys.argv[2])
    else:
        main()
