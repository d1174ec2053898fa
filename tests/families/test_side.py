"""Checkpointed decoders ask for what their dry runs ask for, request by request, and release it at the same places."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families.grid import Setting
from tests.families.side import differences

#: Two of those that are. Where blocks keep what they save, the formulas have the embedding twice while the first block
#: runs: the model's name has it, and the block's program frees its input.
THE_SAME = [
    Setting(family=family, stage=2, checkpointing="torch", sequence_length=500) for family in ("Qwen 3", "Mixtral")
]


@pytest.mark.engine
def test_every_request_is_the_dry_runs(tmp_path: Path) -> None:
    assert dict(differences(THE_SAME, tmp_path)) == {setting.name: None for setting in THE_SAME}
