"""Step time on a made-up machine whose rates are round: what is computed can be checked by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from dsplan.catalogue import accelerator
from dsplan.errors import InputError
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.strategies import ddp_plans, find_plan, standard_plans
from dsplan.timing.collectives import STEP_NVLINK_S, collective
from dsplan.timing.engines import work_of
from dsplan.timing.host import host_times
from dsplan.timing.kernels import kernels
from dsplan.timing.nominal import catalogue
from dsplan.timing.profiles import DATA_SHEETS, shipped
from dsplan.timing.rates import Machine, catalogued, machine
from dsplan.timing.step_time import StepTime, StepTimer, model_flops, step_time
from dsplan.workload import Workload
from tests.timing import profiles

MODEL = ModelShape(num_layers=4, hidden_size=1024, num_attention_heads=16, attention="sdpa", activation="gelu")
H200 = accelerator("h200")


@pytest.fixture(scope="module")
def made_up() -> Machine:
    return machine(H200, profiles.profile())


def cluster(gpus: int = 1, nodes: int = 1) -> Cluster:
    return Cluster(accelerator=H200, gpus_per_node=gpus, num_nodes=nodes)


def plan(name: str, **workload: object) -> Plan:
    made = Workload(micro_batch_size=8, **workload)  # type: ignore[arg-type]
    return find_plan(standard_plans(MODEL, made), name)


def time_of(name: str, made_up: Machine, gpus: int = 1, **workload: object) -> StepTime:
    return step_time(MODEL, plan(name, **workload), cluster(gpus), made_up)


def test_products_of_a_block_are_its_operations_by_the_rate(made_up: Machine) -> None:
    found = kernels(made_up.profile, MODEL, Workload(micro_batch_size=8), own_linear=False)
    tokens, h = 8 * 1024, 1024
    linear = 2 * tokens * 12 * h * h / profiles.HALF
    attention = 2 * 8 * 16 * 1024**2 * 64 / profiles.HALF
    assert found.block.forward_products == pytest.approx(linear + attention, rel=0.1)  # the launch bends the grid
    assert found.block.backward_products == pytest.approx(2 * linear + 2.5 * attention, rel=0.1)
    assert found.head.forward_products == pytest.approx(2 * tokens * h * 50257 / profiles.HALF, rel=0.02)


def test_checkpointing_adds_one_forward_pass_of_the_blocks(made_up: Machine) -> None:
    plain, recomputed = time_of("zero0", made_up), time_of("zero0-ckpt", made_up)
    block = kernels(made_up.profile, MODEL, Workload(micro_batch_size=8), own_linear=False).block
    again = sum(block.recomputed("torch"))  # all but the residual
    assert 0.95 * block.forward < again < block.forward
    assert recomputed.seconds - plain.seconds == pytest.approx(MODEL.num_layers * again, rel=0.01)
    assert recomputed.forward_s == pytest.approx(plain.forward_s)


def test_eager_attention_pays_for_every_score(made_up: Machine) -> None:
    eager = replace(MODEL, attention="eager")
    workload = Workload(micro_batch_size=8)
    more = kernels(made_up.profile, eager, workload, own_linear=False).block
    less = kernels(made_up.profile, MODEL, workload, own_linear=False).block
    scores = 8 * 16 * 1024**2
    once = 3 * scores * 2 / profiles.BANDWIDTH
    # forward: scale, mask, softmax, dropout
    assert more.forward_memory - less.forward_memory == pytest.approx(4 * once, rel=0.05)


@pytest.mark.parametrize("depth", [2, 8, 30])
def test_the_host_is_a_line_through_the_measured_depths(made_up: Machine, depth: int) -> None:
    model = replace(MODEL, num_layers=depth)
    found = host_times(made_up.profile, model, plan("zero2"), 1)
    assert found.forward == pytest.approx(1e-3 + depth * profiles.BLOCK_S["forward_s"])
    assert found.backward == pytest.approx(1e-3 + depth * profiles.BLOCK_S["backward_s"])
    third = host_times(made_up.profile, model, plan("zero3"), 1)
    assert third.step == pytest.approx(4 * (1e-3 + depth * profiles.BLOCK_S["step_s"]))


def test_a_small_batch_takes_as_long_as_the_host_asks(made_up: Machine) -> None:
    one = replace(plan("zero2"), workload=Workload(micro_batch_size=1, sequence_length=64))
    found = step_time(MODEL, one, cluster(), made_up)
    assert found.dominant == "host, asking"
    host = host_times(made_up.profile, MODEL, one, 1)
    assert found.seconds - found.update_s == pytest.approx(host.forward + host.backward)


def test_collectives_move_what_a_ring_moves(made_up: Machine) -> None:
    size = 2.0**30
    for operator, passes in (("all_reduce", 2), ("all_gather", 1), ("reduce_scatter", 1)):
        for ranks in (2, 4, 8):
            found = collective(made_up.profile, made_up.links, cluster(ranks), operator, size)
            hops = passes * (ranks - 2) * STEP_NVLINK_S
            moved = passes * (ranks - 1) / ranks * size / profiles.LINK
            assert found == pytest.approx(moved + hops + profiles.LATENCY, rel=0.02), (operator, ranks)


def test_between_nodes_the_network_sets_the_pace(made_up: Machine) -> None:
    size = 2.0**30
    found = collective(made_up.profile, made_up.links, cluster(8, 4), "all_gather", size)
    assert found == pytest.approx(31 / 32 * size / (0.783 * 50e9), rel=5e-3)


def test_a_single_rank_reduces_nothing(made_up: Machine) -> None:
    assert collective(made_up.profile, made_up.links, cluster(), "all_reduce", 2.0**30) == 0


def test_stages_0_to_2_move_the_gradients_twice_and_stage_3_everything_three_times(made_up: Machine) -> None:
    on = cluster(4)
    psi = MODEL.num_parameters
    # Latency is another test's, and so is what a small model keeps between the passes.
    whole = {"reduce_bucket_size": psi, "stage3_prefetch_bucket_size": psi, "stage3_max_reuse_distance": 0}
    reduced = {
        name: work_of(MODEL, replace(plan(name), zero=replace(plan(name).zero, **whole)), on, made_up)
        for name in ("zero0", "zero1", "zero2", "zero3")
    }
    one = collective(made_up.profile, made_up.links, on, "all_gather", 2.0 * MODEL.num_parameters)
    assert reduced["zero2"].gather_update_s == pytest.approx(one, rel=0.05)
    assert reduced["zero0"].reduce_s > 2 * one
    assert reduced["zero3"].gather_forward_s == pytest.approx(one, rel=0.1)
    assert reduced["zero3"].gather_backward_s == reduced["zero3"].gather_forward_s
    assert reduced["zero3"].reduce_s == pytest.approx(one, rel=0.1)
    assert reduced["zero3"].overlaps
    assert not reduced["zero2"].overlaps


def test_small_buckets_pay_the_latency_more_often(made_up: Machine) -> None:
    few = plan("zero2")
    many = replace(few, zero=replace(few.zero, reduce_bucket_size=100_000))
    on = cluster(4)
    assert work_of(MODEL, many, on, made_up).reduce_s > 1.5 * work_of(MODEL, few, on, made_up).reduce_s


def test_accumulation_repeats_passes_and_not_the_update(made_up: Machine) -> None:
    one, four = time_of("zero1", made_up), time_of("zero1", made_up, gradient_accumulation_steps=4)
    assert four.update_s == pytest.approx(one.update_s)
    passes = one.forward_s + one.backward_s
    assert four.seconds <= 4 * passes + one.update_s + 1e-9
    assert four.seconds > one.seconds + 2.5 * (passes - 0.5 * one.backward_s)


def test_offload_is_slower_and_says_that_the_host_is_why(made_up: Machine) -> None:
    resident, offloaded = time_of("zero2", made_up), time_of("zero2-offload", made_up)
    assert offloaded.seconds > resident.seconds
    psi = MODEL.num_parameters
    assert offloaded.parts["optimizer on the host"] == pytest.approx(3 * psi / 1e9, rel=0.01)  # Adam, clipping, cast
    assert offloaded.parts["copies to and from the host"] == pytest.approx(6 * psi / profiles.HOST_LINK, rel=0.01)
    # On the stream that computes, unless overlap_comm gives them one of their own.
    apart = replace(plan("zero2-offload"), zero=replace(plan("zero2-offload").zero, overlap_comm=True))
    assert step_time(MODEL, apart, cluster(), made_up).seconds < offloaded.seconds
    # Ranks of a node share its host: half of the parameters each take as long as all of them did.
    shared = time_of("zero2-offload", made_up, gpus=2)
    assert shared.parts["optimizer on the host"] == pytest.approx(3 * psi / 1e9, rel=0.01)


def test_accumulated_gradients_go_to_the_host_and_back(made_up: Machine) -> None:
    once = 2 * MODEL.num_parameters / profiles.HOST_LINK
    second, third = (work_of(MODEL, plan(name), cluster(), made_up) for name in ("zero2-offload", "zero3-offload"))
    for work, copies in ((second, (2, 2 + 5)), (third, (2 + 2, 2 + 6))):  # twice: fp32, at the boundary
        for micro_batches, times in zip((1, 3), copies, strict=True):
            assert work.host_copies_s(micro_batches) == pytest.approx(times * once, rel=0.01)


def test_ranks_of_a_node_share_its_drive(made_up: Machine) -> None:
    on_drive, on_host = plan("zero3-nvme"), plan("zero3-offload-param")
    for gpus in (1, 4):
        slow, fast = (work_of(MODEL, one, cluster(gpus), made_up) for one in (on_drive, on_host))
        psi = MODEL.num_parameters
        assert slow.gather_forward_s - fast.gather_forward_s == pytest.approx(2 * psi / 5e9, rel=0.01)
        assert slow.host_update_s - fast.host_update_s == pytest.approx(12 * psi * (1 / 5e9 + 1 / 3e9), rel=0.01)


def test_tokens_and_utilisation_follow_from_the_step(made_up: Machine) -> None:
    found = time_of("zero2", made_up, gpus=2, gradient_accumulation_steps=2)
    tokens = 8 * 1024 * 2 * 2
    assert found.tokens_per_s == pytest.approx(tokens / found.seconds)
    flops = model_flops(MODEL, 1024)
    assert flops == pytest.approx(6 * (4 * 12 * 1024**2 + 50257 * 1024) + 12 * 4 * 1024 * 1024)
    assert found.model_flops_utilisation == pytest.approx(flops * tokens / found.seconds / (2 * 989.4e12))
    assert found.measured


def test_without_a_profile_data_sheets_and_the_shares_others_measured_stand() -> None:
    a100, h200 = machine(accelerator("a100-40gb")), machine(H200, DATA_SHEETS)
    assert not a100.measured
    slow, fast = (one.profile.linear("bf16", 16384, 8192, 8192)[0] for one in (a100, h200))
    assert slow == pytest.approx(2 * 16384 * 8192**2 / (0.83 * 312e12), rel=1e-3)
    assert slow / fast == pytest.approx(989.4 / 312)
    copies = [one.profile.elementwise("copy", "bf16", 2**26) for one in (a100, h200)]
    assert copies[0] == pytest.approx(2 * 2 * 2**26 / (0.906 * 1555e9), rel=1e-3)
    assert copies[0] / copies[1] == pytest.approx(4800 / 1555)
    assert a100.profile.elementwise("copy", "bf16", 1) == pytest.approx(1.28e-6)
    with pytest.raises(InputError, match=r"no rates are known of gaudi.*--profile"):
        machine(accelerator("gaudi"))


def test_nominal_figures_have_sources() -> None:
    document = catalogue()
    assert all(entry["source"] for entry in document["achieved"].values())


def test_what_no_data_sheet_says_of_the_host_is_of_the_profile_that_ships() -> None:
    h200 = shipped("h200")
    assert h200 is not None
    a100 = machine(accelerator("a100-40gb")).profile
    for ranks in (1, 2):
        assert host_times(a100, MODEL, plan("zero3"), ranks) == host_times(h200, MODEL, plan("zero3"), ranks)
    assert host_times(a100, MODEL, plan("zero3-offload-param"), 1).forward > 0


def test_every_rate_has_a_source_and_belongs_to_a_catalogued_device() -> None:
    for name, rates in catalogued().items():
        assert accelerator(name).name == name
        assert rates.source
        assert rates.half_flops >= rates.single_flops


def test_ddp_overlaps_its_reduction(made_up: Machine) -> None:
    (ddp, _) = ddp_plans(Workload(micro_batch_size=8, precision="fp16"))
    assert work_of(MODEL, ddp, cluster(4), made_up).overlaps
    assert step_time(MODEL, ddp, cluster(4), made_up).seconds > 0


def test_a_profile_without_what_is_asked_for_says_so() -> None:
    bare = profiles.profile()
    bare.document = {**bare.document, "engine": [], "drive": []}
    with pytest.raises(InputError, match=r"made-up: it lacks the engine's times for zero2"):
        host_times(bare, MODEL, plan("zero2"), 1)
    with pytest.raises(InputError, match="no drive was measured"):
        _ = bare.drive


def test_one_profile_serves_other_links_and_other_clipping(made_up: Machine) -> None:
    """What was worked out for one is not taken for the other, though both have the profile in common."""
    clipped, free = plan("zero1"), replace(plan("zero1"), gradient_clipping=0.0)
    assert work_of(MODEL, clipped, cluster(), made_up).update_s > work_of(MODEL, free, cluster(), made_up).update_s
    apart = Cluster(gpus_per_node=1, num_nodes=2)
    slow = replace(made_up, links=replace(made_up.links, between_bytes_per_s=1e8))
    assert work_of(MODEL, clipped, apart, slow).reduce_s > work_of(MODEL, clipped, apart, made_up).reduce_s


def test_a_timer_says_of_many_plans_what_is_said_of_each(made_up: Machine) -> None:
    timer = StepTimer(MODEL, cluster(2), made_up)
    for name, size, steps in product(("zero1", "zero2-ckpt", "zero3-offload"), (1, 8), (1, 3)):
        one = plan(name, gradient_accumulation_steps=steps)
        one = replace(one, workload=replace(one.workload, micro_batch_size=size))
        assert timer.of(one) == timer.of(one) == step_time(MODEL, one, cluster(2), made_up)
