"""Host memory of a node: what malloc may keep, what is swapped and locked, and what this machine lets a rank have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dsplan import detect, heap_threshold, states
from dsplan.catalogue import accelerator, preset
from dsplan.engine.base import Run
from dsplan.hardware import Cluster, Drive, HostLimits
from dsplan.kernels import kernels_of
from dsplan.ledger import Ledger, Term
from dsplan.overhead import PROCESS_HOST_BYTES
from dsplan.plan import Plan
from dsplan.strategies import standard_plans
from dsplan.units import GIB, MIB
from dsplan.verdict.heap import kept_by_malloc
from dsplan.verdict.host import host_estimate, judge_host
from dsplan.verdict.judge import DOES_NOT_FIT, FITS, TIGHT
from dsplan.verdict.rows import HostEstimate
from dsplan.verdict.swap import swapped
from dsplan.walk import Walk, walk
from dsplan.workload import Workload
from tests.gpu.cases import SETS, Case
from tests.verdict.plans import MODEL, PLANS

KERNELS = kernels_of(accelerator("h200"))
MEASURED = Path(__file__).parents[1] / "data" / "measured"
BETWEEN = MEASURED.parent / "between"  # of the same cases, made while malloc's threshold moved
CASES: dict[str, Case] = {case.name: case for cases in SETS.values() for case in cases}
OFFLOADED = sorted(
    path for folder in (MEASURED, BETWEEN) for path in folder.glob("*offload*.json") if path.stem in CASES
)
LARGE = preset("gpt2-large")
LARGE_PLANS = {plan.name: plan for plan in standard_plans(LARGE, Workload())}
HOST = HostEstimate(
    pinned_bytes=GIB, pageable_bytes=GIB, bytes_per_node=10 * GIB, bound_bytes_per_node=12 * GIB, kept_bytes=GIB
)


def _estimated(case: Case, mmap_threshold_bytes: int | None) -> HostEstimate:
    model, plan = case.model_shape(), case.plan()
    limits = HostLimits(mmap_threshold_bytes=mmap_threshold_bytes)
    cluster = Cluster(accelerator=accelerator("h200"), gpus_per_node=case.gpus, limits=limits)
    return host_estimate(model, plan, cluster, walk(model, plan, case.gpus, KERNELS), KERNELS)


@pytest.mark.parametrize("path", OFFLOADED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_bound_is_not_below_what_was_measured(path: Path) -> None:
    """Resident memory of all ranks' processes at most; a process is as large as it was measured to be, within 1 %."""
    ranks = json.loads(path.read_text(encoding="utf-8"))["ranks"]
    measured = sum(rank["host"]["peak_rss_bytes"] for rank in ranks)
    threshold = ranks[0]["host"].get("mmap_threshold_bytes")
    host = _estimated(CASES[path.stem], threshold)
    assert host.bound_bytes_per_node >= 0.99 * measured
    assert host.bound_bytes_per_node <= (1.12 if threshold is None else 1.02) * measured
    assert host.bound_bytes_per_node >= host.bytes_per_node


@pytest.mark.parametrize(
    "name", ["gpt2-xl-z2-bf16-n4", "gpt2-large-z2-bf16-n2", "gpt2-medium-z1-bf16-n2", "1.7B-z2-bf16-n1"]
)
def test_what_stays_of_a_model_that_has_moved_is_not_above_what_may_be_kept(name: str) -> None:
    """Runs without offload: nothing is on the host at the end but the process and what malloc kept."""
    ranks = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))["ranks"]
    left = max(rank["host"]["rss_bytes"] for rank in ranks) - PROCESS_HOST_BYTES
    case = CASES[name]
    assert left <= kept_by_malloc(case.model_shape(), case.plan()) + 128 * MIB  # by which processes differ


def test_the_half_precision_copies_below_32_mib_may_be_kept() -> None:
    kept = kept_by_malloc(LARGE, LARGE_PLANS["zero2"])
    copies = 2 * sum(parameter.numel for parameter in LARGE.block_parameters) * LARGE.num_layers
    masks = 4 * LARGE.num_layers * LARGE.max_position_embeddings**2
    assert copies < kept < copies + masks + 16 * MIB
    assert kept_by_malloc(preset("1.7B"), LARGE_PLANS["zero2"]) < 16 * MIB  # its weights are larger than that
    assert kept_by_malloc(LARGE, LARGE_PLANS["zero3"]) == 0  # which are made on the device
    assert kept_by_malloc(LARGE, LARGE_PLANS["zero2"], threshold=MIB) < 16 * MIB


def test_a_fixed_threshold_and_fp32_keep_little() -> None:
    plan = replace(LARGE_PLANS["zero2"], workload=replace(LARGE_PLANS["zero2"].workload, precision="fp32"))
    sdpa = replace(LARGE, attention="sdpa")
    assert kept_by_malloc(sdpa, plan) < 16 * MIB  # mapped apart, one by one, and given back


def test_where_the_building_is_the_peak_what_is_kept_counts_from_what_comes_after() -> None:
    """With many ranks a rank's share of the optimizer is small, and the model it builds is the most it holds."""
    plan = LARGE_PLANS["zero2-offload"]
    cluster = Cluster(accelerator=accelerator("h200"), gpus_per_node=8, num_nodes=16)
    walked = walk(LARGE, plan, cluster.world_size, KERNELS)
    host = host_estimate(LARGE, plan, cluster, walked, KERNELS)
    assert host.bytes_per_node == 8 * (PROCESS_HOST_BYTES + walked.host_bytes)
    assert host.bytes_per_node <= host.bound_bytes_per_node < host.bytes_per_node + 8 * host.kept_bytes


class _Locked(Ledger):
    """Adds up what is locked for swapping."""

    locked = 0

    def alloc(self, term: Term, size: int) -> None:
        self.locked += size * (term in (states.SWAP_OPTIMIZER, states.SWAP_PARAMETERS))
        super().alloc(term, size)


@pytest.mark.parametrize("ranks", [1, 2, 7])
def test_what_is_locked_is_what_the_walk_allocates(ranks: int) -> None:
    plan, ledger = PLANS["zero3-nvme"], _Locked(KERNELS)
    Walk(Run(model=MODEL, plan=plan, world_size=ranks, kernels=KERNELS, ledger=ledger)).take()
    assert swapped(MODEL, plan, ranks).locked_bytes == ledger.locked > 0


def test_the_files_are_masters_states_gradients_and_parameters() -> None:
    large = preset("gpt2-xl")  # whose small tensors, which are not written, are a small part
    plan = next(plan for plan in standard_plans(large, Workload(), nvme_path="/nvme") if plan.name == "zero3-nvme")
    files = dict(swapped(large, plan, 1).files)
    assert set(files) == {"/nvme"}
    expected = large.num_parameters * (4 + 8 + 4 + 2)
    assert 0.99 * expected < files["/nvme"] < 1.001 * expected
    assert swapped(large, LARGE_PLANS["zero2-offload"], 1).files == ()


def _cluster(**limits: object) -> Cluster:
    return Cluster(accelerator=accelerator("h200"), gpus_per_node=2, limits=HostLimits(**limits))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cluster", "host", "verdict", "said"),
    [
        (Cluster(host_memory_bytes=9 * GIB), HOST, DOES_NOT_FIT, "short by 1.00 GiB per node"),
        (Cluster(host_memory_bytes=11 * GIB), HOST, TIGHT, "MALLOC_MMAP_THRESHOLD_=1048576"),
        (Cluster(host_memory_bytes=12 * GIB), HOST, FITS, ""),
        (Cluster(), HOST, FITS, ""),
        (_cluster(locked_bytes=64 * MIB), HOST, FITS, ""),
        (_cluster(locked_bytes=64 * MIB, locks_pinned_memory=True), HOST, DOES_NOT_FIT, "ulimit -l"),
        (_cluster(locked_bytes=GIB), replace(HOST, locked_bytes=GIB + 1), DOES_NOT_FIT, "ulimit -l"),
        (_cluster(locked_bytes=None), replace(HOST, locked_bytes=GIB + 1), FITS, ""),
        (_cluster(shared_bytes=64 * MIB), HOST, TIGHT, "/dev/shm has 64.0 MiB"),
        (_cluster(shared_bytes=GIB), HOST, FITS, ""),
        (
            _cluster(drives=(Drive(folder="/a", file_system=1, free_bytes=3 * GIB),)),
            replace(HOST, disk_bytes_per_node=(("/a", 4 * GIB),)),
            DOES_NOT_FIT,
            "drive of /a on this host is short by 1.00 GiB",
        ),
        (  # two folders of one file system share what is free
            _cluster(drives=tuple(Drive(folder=name, file_system=1, free_bytes=3 * GIB) for name in ("/a", "/b"))),
            replace(HOST, disk_bytes_per_node=(("/a", 2 * GIB), ("/b", 2 * GIB))),
            DOES_NOT_FIT,
            "short by 1.00 GiB",
        ),
        (
            _cluster(drives=(Drive(folder="/a", file_system=1, free_bytes=4 * GIB),)),
            replace(HOST, disk_bytes_per_node=(("/a", 4 * GIB),)),
            FITS,
            "",
        ),
    ],
)
def test_the_verdict_on_the_host(cluster: Cluster, host: HostEstimate, verdict: str, said: str) -> None:
    found = judge_host(host, cluster)
    assert found.verdict == verdict
    assert said in found.reason


def test_shared_memory_does_not_matter_to_one_rank() -> None:
    cluster = replace(_cluster(shared_bytes=MIB), gpus_per_node=1)
    assert judge_host(HOST, cluster).verdict == FITS


def test_this_machine_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import resource

    status = tmp_path / "status"
    monkeypatch.setattr(detect, "STATUS", status)
    monkeypatch.setattr(detect, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64 * MIB, GIB))
    monkeypatch.setenv(detect.PINNING, "native")
    status.write_text("CapEff:\t0000000000000000\n")
    limits = detect.host_limits([str(tmp_path / "not" / "yet"), str(tmp_path / "not" / "yet")])
    assert limits.locked_bytes == 64 * MIB
    assert limits.locks_pinned_memory
    assert limits.shared_bytes
    assert [drive.folder for drive in limits.drives] == [str(tmp_path / "not" / "yet")]
    assert limits.drives[0].file_system == tmp_path.stat().st_dev
    status.write_text("CapEff:\t0000000000004000\n")  # CAP_IPC_LOCK
    assert detect.host_limits().locked_bytes is None
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    status.write_text("CapEff:\t0000000000000000\n")
    assert detect.host_limits().locked_bytes is None


def test_a_plan_names_the_same_folders_in_its_files(tmp_path: Path) -> None:
    from dsplan.cli.estimate import swap_folders

    plans: list[Plan] = standard_plans(MODEL, Workload(sequence_length=256), nvme_path=str(tmp_path))
    folders = swap_folders(plans)
    assert set(folders) == {str(tmp_path)}
    written = [folder for plan in plans for folder, _ in swapped(MODEL, plan, 1).files]
    assert written
    assert set(written) == set(folders)


@pytest.mark.parametrize(("value", "threshold"), [("1048576", MIB), ("", None), ("1M", None)])
def test_the_environment_that_gives_it_back_is_heard(
    value: str, threshold: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(heap_threshold.VARIABLE, value)
    limits = detect.host_limits()
    assert limits.mmap_threshold_bytes == threshold
    cluster = Cluster(accelerator=accelerator("h200"), gpus_per_node=2, limits=limits)
    plan = LARGE_PLANS["zero2-offload"]
    host = host_estimate(LARGE, plan, cluster, walk(LARGE, plan, 2, KERNELS), KERNELS)
    assert (host.kept_bytes < 16 * MIB) == (threshold is not None)
