"""detect: what the drivers' tools print becomes an Accelerator; whatever else they do is "none"."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dsplan import detect
from dsplan.catalogue import accelerator
from dsplan.units import MIB

Tool = Callable[[str, str], None]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Puts a shell script of the given name on a PATH that has nothing else."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    return install


def prints(*lines: str) -> str:
    return "\n".join(f"echo '{line}'" for line in lines)


def test_a_machine_without_tools_has_no_accelerator(tool: Tool) -> None:
    assert detect.local_accelerator() is None
    assert detect.local_gpu_count() == 0


def test_a_known_card_is_the_catalogues(tool: Tool) -> None:
    tool("nvidia-smi", prints("NVIDIA H200, 143771, 9.0", "NVIDIA H200, 143771, 9.0"))
    assert detect.local_accelerator() is accelerator("h200")
    assert detect.local_gpu_count() == 2


def test_the_query_is_the_documented_one(tool: Tool, tmp_path: Path) -> None:
    tool("nvidia-smi", f'echo "$@" >> {tmp_path}/asked\necho "NVIDIA L4, 23034, 8.9"')
    assert detect.local_accelerator() is accelerator("l4")
    asked = (tmp_path / "asked").read_text(encoding="utf-8")
    first, second = asked.splitlines()
    assert first == "--query-gpu=name,memory.total,compute_cap,memory.reserved --format=csv,noheader,nounits"
    assert second == "--query-gpu=name,memory.total,compute_cap --format=csv,noheader,nounits"


def test_what_the_driver_keeps_of_a_live_card_is_the_driver_s_to_say(tool: Tool) -> None:
    tool("nvidia-smi", prints("NVIDIA H200, 143771, 9.0, 615"))
    assert detect.local_accelerator() is accelerator("h200")
    tool("nvidia-smi", prints("NVIDIA H200, 143771, 9.0, 1200"))
    found = detect.local_accelerator()
    assert found is not None
    assert found.usable_bytes == (143771 - 1200) * MIB
    assert found.context_bytes == accelerator("h200").context_bytes


def test_drivers_that_do_not_know_compute_cap_are_asked_again(tool: Tool) -> None:
    script = 'case "$1" in *compute_cap*) echo "Field is not a valid field to query."; exit 2;; esac'
    tool("nvidia-smi", f"{script}\n{prints('Tesla V100-SXM2-16GB, 16160')}")
    assert detect.local_accelerator() is accelerator("v100-16gb")


def test_a_later_driver_counts_its_reserve_and_the_card_is_still_known(tool: Tool) -> None:
    tool("nvidia-smi", prints("Tesla V100-SXM2-32GB, 32768, 7.0"))
    assert detect.local_accelerator() is accelerator("v100-32gb")


def test_a_known_name_with_other_memory_keeps_the_reported_memory(tool: Tool) -> None:
    tool("nvidia-smi", prints("NVIDIA H100 PCIe, 65247, 9.0"))
    found = detect.local_accelerator()
    assert found is not None
    assert found.memory_bytes == 65247 * MIB
    assert found.label == "NVIDIA H100 PCIe"
    assert found.name != "h100"
    assert found.context_bytes == accelerator("h100").context_bytes
    assert found.sources[0] == "memory_bytes: nvidia-smi on this machine"


@pytest.mark.parametrize(
    ("line", "name", "bf16", "like"),
    [
        ("NVIDIA H100 NVL, 95830, 9.0", "h100-nvl", True, "h100"),
        ("NVIDIA GeForce RTX 3090 Ti, 24564, 8.6", "rtx-3090-ti", True, "rtx-3090"),
        ("NVIDIA GeForce RTX 5090, 32607, 12.0", "rtx-5090", True, "b200"),
        ("NVIDIA GeForce GTX 1080, 8192, 6.1", "gtx-1080", False, "v100-16gb"),
    ],
)
def test_an_unknown_card_is_built_from_what_was_reported(
    tool: Tool, line: str, name: str, bf16: bool, like: str
) -> None:
    tool("nvidia-smi", prints(line))
    found = detect.local_accelerator()
    label, memory, capability = line.split(", ")
    assert found is not None
    assert (found.name, found.label, found.kind) == (name, label, "cuda")
    assert found.memory_bytes == int(memory) * MIB
    assert (found.compute_capability, found.bf16) == (capability, bf16)
    assert found.cublas_workspace_bytes == accelerator(like).cublas_workspace_bytes
    assert any("on this machine" in source for source in found.sources)


def test_of_different_cards_the_smallest_counts(tool: Tool) -> None:
    tool("nvidia-smi", prints("NVIDIA A100-SXM4-80GB, 81920, 8.0", "NVIDIA A100-SXM4-40GB, 40960, 8.0"))
    assert detect.local_accelerator() is accelerator("a100-40gb")


@pytest.mark.parametrize(
    ("setting", "count", "name"),
    [
        ("0", 1, "h200"),
        ("1,0", 2, "l4"),
        ("1", 1, "l4"),
        ("", 0, None),
        ("-1", 0, None),
        ("0,-1,1", 1, "h200"),
        ("0,7", 1, "h200"),
        ("GPU-0123,GPU-4567", 2, "l4"),
    ],
)
def test_hidden_devices_do_not_count(
    tool: Tool, monkeypatch: pytest.MonkeyPatch, setting: str, count: int, name: str | None
) -> None:
    tool("nvidia-smi", prints("NVIDIA H200, 143771, 9.0", "NVIDIA L4, 23034, 8.9"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    found = detect.local_accelerator()
    assert detect.local_gpu_count() == count
    assert (found.name if found else None) == name


@pytest.mark.parametrize(
    ("line", "key"),
    [("HL-205, 32768 MiB", "gaudi"), ("HL-225, 98304 MiB", "gaudi2"), ("HL-325L, 131072 MiB", "gaudi3")],
)
def test_gaudi(tool: Tool, tmp_path: Path, line: str, key: str) -> None:
    tool("hl-smi", f'echo "$@" > {tmp_path}/asked\n{prints(*[line] * 8)}')
    assert detect.local_accelerator() is accelerator(key)
    assert detect.local_gpu_count() == 8
    assert (tmp_path / "asked").read_text(encoding="utf-8") == "-Q name,memory.total -f csv,noheader\n"


def test_a_broken_nvidia_driver_does_not_hide_a_gaudi(tool: Tool) -> None:
    tool("nvidia-smi", "echo 'NVIDIA-SMI has failed because it could not communicate with the driver.'; exit 9")
    tool("hl-smi", prints("HL-225, 98304 MiB"))
    assert detect.local_accelerator() is accelerator("gaudi2")


def test_an_unknown_gaudi(tool: Tool) -> None:
    tool("hl-smi", prints("HL-999, 200000 MiB"))
    found = detect.local_accelerator()
    assert found is not None
    assert (found.name, found.kind, found.memory_bytes) == ("hl-999", "hpu", 200_000 * MIB)
    assert found.cublas_workspace_bytes == 0


@pytest.mark.parametrize(
    "script",
    [
        "exit 0",
        "echo 'No devices were found'",
        "echo 'NVIDIA GB10, [N/A], 12.1'",
        "printf '\\377\\376, x, y'",
        "exit 6",
    ],
)
def test_answers_without_a_device(tool: Tool, script: str) -> None:
    tool("nvidia-smi", script)
    assert detect.local_accelerator() is None


def test_a_tool_that_hangs_is_left(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    tool("nvidia-smi", "exec /bin/sleep 30")
    monkeypatch.setattr(detect, "TIMEOUT_SECONDS", 0.2)
    assert detect.local_accelerator() is None


def test_a_tool_that_cannot_be_started(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("not a program", encoding="utf-8")
    assert detect.local_gpu_count() == 0


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("MemTotal:       16384 kB\nMemFree:  1 kB\n", 16384 * 1024),
        ("MemFree:  1 kB\nMemTotal: 2 kB\n", 2048),
        ("MemFree:  1 kB\n", None),
        ("MemTotal:\n", None),
        ("", None),
    ],
)
def test_host_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, size_bytes: int | None) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(text, encoding="ascii")
    monkeypatch.setattr(detect, "MEMINFO", meminfo)
    assert detect.host_memory_bytes() == size_bytes


def test_host_memory_where_there_is_no_meminfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "MEMINFO", tmp_path / "absent")
    assert detect.host_memory_bytes() is None


def test_planning_does_not_need_torch() -> None:
    program = "import sys, dsplan.detect, dsplan.infer, dsplan.catalogue; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0
