"""runner.environment: what the children inherit, and what not."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import dsplan
from dsplan.heap_threshold import VARIABLE
from runner.environment import VISIBLE_DEVICES, child_environment, cuda_architectures
from runner.spec import RunSpec


def spec(device: str = "cuda", gpus: int = 2) -> RunSpec:
    return RunSpec(model={}, ds_config={}, sequence_length=8, device=device, gpus=gpus)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("9.0a", "9.0"),
        ("8.0 9.0a+PTX", "8.0;9.0+PTX"),
        ("8.0;8.6;9.0", "8.0;8.6;9.0"),
        ("9.0 9.0a+PTX", "9.0+PTX"),
        ("10.0f, 12.0a", "10.0;12.0"),
        ("Hopper", ""),
        ("Ampere;9.0+ptx", "9.0+PTX"),
        ("  ", ""),
    ],
)
def test_architectures_are_written_as_deepspeed_reads_them(value: str, expected: str) -> None:
    assert cuda_architectures(value) == expected


def test_architectures_that_mean_nothing_to_deepspeed_are_left_to_its_own_probe() -> None:
    assert "TORCH_CUDA_ARCH_LIST" not in child_environment(spec(), {"TORCH_CUDA_ARCH_LIST": "Hopper"})
    assert child_environment(spec(), {"TORCH_CUDA_ARCH_LIST": "9.0a"})["TORCH_CUDA_ARCH_LIST"] == "9.0"


def test_the_base_is_kept_and_not_changed() -> None:
    base = {"NCCL_DEBUG": "WARN", "RANK": "3"}
    assert child_environment(spec(), base)["NCCL_DEBUG"] == "WARN"
    assert base == {"NCCL_DEBUG": "WARN", "RANK": "3"}


@pytest.mark.parametrize("device", ["cpu", "cuda", "hpu"])
def test_deepspeed_is_told_the_accelerator(device: str) -> None:
    assert child_environment(spec(device), {"DS_ACCELERATOR": "npu"})["DS_ACCELERATOR"] == device


def test_a_cpu_run_sees_no_gpu() -> None:
    env = child_environment(spec("cpu"), {"CUDA_VISIBLE_DEVICES": "2,3"})
    assert (env["CUDA_VISIBLE_DEVICES"], env[VISIBLE_DEVICES]) == ("", "")


def test_the_gpus_that_the_user_chose_reach_the_ranks() -> None:
    env = child_environment(spec("cuda"), {"CUDA_VISIBLE_DEVICES": "2,3", VISIBLE_DEVICES: "0"})
    assert env[VISIBLE_DEVICES] == "2,3"
    assert "CUDA_VISIBLE_DEVICES" not in env  # DeepSpeed's launcher would only say that it ignores it
    assert VISIBLE_DEVICES not in child_environment(spec("cuda"), {})


@pytest.mark.parametrize(("cores", "gpus", "expected"), [(16, 2, "8"), (2, 4, "1"), (7, 2, "3")])
def test_the_ranks_share_the_cores(cores: int, gpus: int, expected: str) -> None:
    assert child_environment(spec(gpus=gpus), {}, cores=cores)["OMP_NUM_THREADS"] == expected


def test_the_user_s_number_of_threads_stays() -> None:
    assert child_environment(spec(), {"OMP_NUM_THREADS": "5"})["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize("name", ["RANK", "LOCAL_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "PYTHONWARNINGS"])
def test_nothing_of_a_surrounding_job_is_inherited(name: str) -> None:
    assert name not in child_environment(spec(), {name: "1"})


def test_the_tools_beside_python_are_found_first() -> None:
    env = child_environment(spec(), {"PATH": "/usr/bin"})
    assert env["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]


def test_the_children_import_what_the_parent_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = os.pathsep.join(["", "src", "/opt/lib"])
    entries = child_environment(spec(), {"PYTHONPATH": base})["PYTHONPATH"].split(os.pathsep)
    home = str(Path(dsplan.__file__).parent.parent)
    assert entries[-2:] == [str(tmp_path / "src"), "/opt/lib"]  # the child runs in another folder
    assert home in entries or "site-packages" in home
    assert "" not in entries


@pytest.mark.parametrize(
    ("device", "expected"), [("cuda", "1048576"), ("hpu", "1048576"), ("cpu", None), ("fake", None)]
)
def test_malloc_gives_back_what_has_moved_to_a_device(device: str, expected: str | None) -> None:
    """On a CPU every activation would be mapped apart; a dry run allocates nothing."""
    run = replace(spec(), device=device, rank=0 if device == "fake" else None, target={} if device == "fake" else None)
    assert child_environment(run, {}).get(VARIABLE) == expected
    assert child_environment(run, {VARIABLE: "65536"})[VARIABLE] == "65536"


def test_late_release_keeps_collectives_from_the_watchdog() -> None:
    name = "TORCH_NCCL_BLOCKING_WAIT"
    assert name not in child_environment(spec(), {})
    assert child_environment(replace(spec(), late_release=True), {})[name] == "1"
