"""PYTORCH_ALLOC_CONF: what is understood, and what the messages say about the rest."""

from __future__ import annotations

import pytest

from dsplan.allocator import AllocatorSettings, parse_settings
from dsplan.errors import InputError
from dsplan.units import MIB


def test_no_text_is_torchs_defaults() -> None:
    assert parse_settings("") == parse_settings(" , ") == AllocatorSettings()


def test_every_option_that_changes_sizes() -> None:
    found = parse_settings(
        " max_split_size_mb : 128, garbage_collection_threshold:0.8,expandable_segments:True,"
        "large_segment_size_mb:32,max_non_split_rounding_mb:40,per_process_memory_fraction:0.9,"
        "pinned_max_round_threshold_mb:64,pinned_max_cached_size_mb:128"
    )
    assert found == AllocatorSettings(
        max_split_size_bytes=128 * MIB,
        max_non_split_rounding_bytes=40 * MIB,
        garbage_collection_threshold=0.8,
        expandable_segments=True,
        large_segment_size_bytes=32 * MIB,
        per_process_memory_fraction=0.9,
        pinned_max_round_threshold_bytes=64 * MIB,
        pinned_max_cached_size_bytes=128 * MIB,
    )


@pytest.mark.parametrize(
    "text",
    [
        "backend:native",
        "pinned_use_background_threads:True",
        "release_lock_on_cudamalloc:True,pinned_use_cuda_host_register:True,pinned_num_register_threads:8",
        "graph_capture_record_stream_reuse:False",
        "throw_on_cudamalloc_oom:False",
    ],
)
def test_options_that_change_no_size_are_accepted(text: str) -> None:
    assert parse_settings(text) == AllocatorSettings()


@pytest.mark.parametrize(
    ("value", "divisions"),
    [
        ("4", (4,) * 16),
        ("[256:1,512:2,1024:4,>:8]", (1,) * 9 + (2, 4) + (8,) * 5),
        ("[64:8,128:2,256:4,512:2,1024:4,>:1]", (8,) * 7 + (2, 4, 2, 4) + (1,) * 5),
        ("[1:2,4:0]", (2, 0, 0) + (0,) * 13),
        ("[64:8,]", (8,) * 7 + (0,) * 9),
        ("[1048576:2]", (2,) * 16),
        ("[>:4]", (0,) + (4,) * 15),
        ("[]", (0,) * 16),
    ],
)
def test_roundup_power2_divisions_in_both_forms(value: str, divisions: tuple[int, ...]) -> None:
    found = parse_settings(f"expandable_segments:False,roundup_power2_divisions:{value},backend:native")
    assert found.roundup_power2_divisions == divisions


def test_of_an_option_given_twice_the_last_counts() -> None:
    assert parse_settings("max_split_size_mb:64,max_split_size_mb:32").max_split_size_bytes == 32 * MIB


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_split_size_md:64", "unknown option 'max_split_size_md'; did you mean max_split_size_mb"),
        ("zzz:1", "unknown option 'zzz'; allowed: backend, "),
        ("max_split_size_mb", "'max_split_size_mb' is not an option; write key:value"),
        ("max_split_size_mb=64", "'max_split_size_mb=64' is not an option; write key:value"),
        ("max_split_size_mb:", "is not an option"),
        ("max_split_size_mb:64;expandable_segments:True", "max_split_size_mb: '64;expandable_segments:True' is not"),
        ("max_split_size_mb:19", "'19' is not allowed; it must be an integer of at least 20"),
        ("max_split_size_mb:30,large_segment_size_mb:32", "it must be an integer of at least 32"),
        ("max_split_size_mb:-1", "'-1' is not allowed"),
        ("max_split_size_mb:64.5", "'64.5' is not allowed"),
        ("max_split_size_mb:٦٤", "is not allowed"),
        ("max_non_split_rounding_mb:1", "it must be an integer of at least 20"),
        ("large_segment_size_mb:10", "it must be an integer of at least 11"),
        ("garbage_collection_threshold:1.0", "'1.0' is not allowed; it must be a number above 0 and below 1"),
        ("garbage_collection_threshold:nan", "it must be a number above 0 and below 1"),
        ("garbage_collection_threshold:most", "it must be a number above 0 and below 1"),
        ("per_process_memory_fraction:1.5", "it must be a number from 0 to 1"),
        ("expandable_segments:true", "'true' is not allowed; it must be True or False"),
        ("roundup_power2_divisions:3", "'3' is not allowed; it must be a power of two"),
        ("roundup_power2_divisions:0", "it must be an integer of at least 1"),
        ("roundup_power2_divisions:[64:3]", "64: '3' is not allowed; it must be a power of two, or 0 for none"),
        ("roundup_power2_divisions:[63:4]", "'63' is not allowed; it must be a power of two"),
        ("roundup_power2_divisions:[64]", "'64' is not allowed; write boundary:divisions"),
        ("roundup_power2_divisions:[64:8", "has a bracket that is not closed"),
        ("roundup_power2_divisions:[64:8]x", "nothing may follow the closing bracket"),
        ("backend:cudaMallocAsync", "'cudaMallocAsync' cannot be planned"),
        ("backend:magic", "unknown value 'magic'; allowed: native"),
        ("pinned_reserve_segment_size_mb:64", "cannot be planned: it takes a pinned segment in advance"),
        ("throw_on_cudamalloc_oom:True", "cannot be planned"),
        ("pinned_max_cached_size_mb:many", "'many' is not allowed"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_settings(text, "PYTORCH_ALLOC_CONF")
    assert str(caught.value).startswith("PYTORCH_ALLOC_CONF: ")
    assert message in str(caught.value)
