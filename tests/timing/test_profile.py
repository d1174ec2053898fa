"""Profiles: valid ones are read, broken ones are refused with file and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsplan.errors import InputError
from dsplan.records import mistakes
from dsplan.timing.profile import read_profile
from tests.timing import profiles


def test_a_profile_is_valid_and_read_back(tmp_path: Path) -> None:
    made = profiles.document()
    assert mistakes("profile", made) == []
    (tmp_path / "p.json").write_text(json.dumps(made))
    found = read_profile(tmp_path / "p.json")
    assert found.name == "made-up"
    assert found.linear("bf16", 2048, 1024, 1024)[0] == pytest.approx(2 * 2048 * 1024**2 / profiles.HALF)


def test_half_precisions_share_their_times() -> None:
    found = profiles.profile()
    assert found.linear("fp16", 2048, 1024, 1024) == found.linear("bf16", 2048, 1024, 1024)


def test_a_broken_profile_is_named_with_its_key(tmp_path: Path) -> None:
    made = profiles.document()
    made["linear"][0]["forward_s"] = -1
    (tmp_path / "p.json").write_text(json.dumps(made))
    with pytest.raises(InputError, match=r"p\.json: linear\[0\]\.forward_s"):
        read_profile(tmp_path / "p.json")
