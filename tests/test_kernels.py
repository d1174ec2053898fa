"""Kernels: which attention kernel torch picks where, and what each kind of device is taken for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsplan.allocator import CachingAllocator
from dsplan.catalogue import accelerator, accelerators
from dsplan.hardware import Accelerator
from dsplan.kernels import CPU_FLASH, EFFICIENT, FLASH, MATH, Kernels, kernels_of
from dsplan.units import MIB

from .tapes import CPU


@pytest.mark.parametrize(
    ("kernels", "element_bytes", "dropout", "kernel"),
    [
        (Kernels(), 2, 0.0, FLASH),
        (Kernels(), 2, 0.1, FLASH),
        (Kernels(), 4, 0.1, EFFICIENT),  # flash has no fp32
        (Kernels(fused_attention=EFFICIENT), 2, 0.1, EFFICIENT),
        (CPU, 4, 0.0, CPU_FLASH),
        (CPU, 2, 0.1, MATH),  # the CPU's has no dropout
    ],
)
def test_torch_picks_the_attention_kernel(kernels: Kernels, element_bytes: int, dropout: float, kernel: str) -> None:
    assert kernels.attention_kernel(element_bytes=element_bytes, dropout=dropout) == kernel


@pytest.mark.parametrize(("capability", "kernel"), [("7.0", EFFICIENT), ("7.5", EFFICIENT), ("8.0", FLASH)])
def test_flash_needs_ampere(capability: str, kernel: str) -> None:
    card = Accelerator(name="card", label="Card", memory_bytes=16 * 1024 * MIB, compute_capability=capability)
    assert kernels_of(card).fused_attention == kernel


@pytest.mark.parametrize("capability", ["10.0", "12.0"])
def test_a_capability_is_a_pair_of_numbers_and_not_a_text(capability: str) -> None:
    card = Accelerator(name="card", label="Card", memory_bytes=16 * 1024 * MIB, compute_capability=capability)
    assert kernels_of(card).fused_attention == FLASH


def test_without_a_device_a_cuda_device_of_this_generation_is_meant() -> None:
    assert kernels_of(None) == kernels_of(accelerator("h200"))
    assert kernels_of(None).workspace_bytes == 32 * MIB


def test_the_cpu_is_one_pool_without_rounding_or_pinning() -> None:
    assert CPU.one_pool
    assert CPU.block_bytes == 1
    assert not CPU.pins_host_memory
    assert not CPU.pinned_rounds_to_power_of_two


def test_every_catalogued_device_has_kernels() -> None:
    for card in accelerators():
        kernels = kernels_of(card)
        assert kernels.one_pool == (card.kind == "cpu")
        assert kernels.workspace_bytes == (0 if card.kind == "cpu" else card.cublas_workspace_bytes)


@given(st.one_of(st.integers(1, 64 * MIB), st.integers(1, 64).map(lambda steps: steps * MIB)))
def test_a_tensor_counts_as_torch_s_allocator_counts_it_in_a_segment_of_its_own(size: int) -> None:
    kernels = Kernels()
    assert kernels.rounded(size) == CachingAllocator().allocate(size).size_bytes
    assert kernels.rounded(kernels.rounded(size)) == kernels.rounded(size)


def test_other_devices_have_other_allocators() -> None:
    size = 11 * MIB + 1
    assert Kernels().rounded(size) == 12 * MIB
    assert CPU.rounded(size) == size
    assert kernels_of(accelerator("gaudi2")).rounded(size) == 11 * MIB + 512
    assert Kernels(whole_segments=False).rounded(size) == 11 * MIB + 512
