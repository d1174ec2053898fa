"""tests.forked_ranks: a rank that fails is told; that the others' records are those of real runs, their tests show."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.spec import RunSpec
from tests.forked_ranks import ForkedRanks

TINY = {"n_layer": 1, "n_head": 2, "n_embd": 32, "vocab_size": 64, "block_size": 16}


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_ranks_that_fail_are_told_with_their_last_words(forked_ranks: ForkedRanks, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    config = {"train_batch_size": 5, "train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "AdamW"}}
    spec = RunSpec(model=TINY, ds_config=config, sequence_length=16, gpus=2, steps=1)
    with pytest.raises(AssertionError, match=r"exit codes of the ranks: \[(1, 1|1, -9|-9, 1)\](.|\n)*train_batch_size"):
        forked_ranks.run(spec, tmp_path / "wrong")
    config["train_batch_size"] = 2
    right = forked_ranks.run(spec, tmp_path / "right")
    assert [(record["rank"], len(record["steps"])) for record in right] == [(0, 1), (1, 1)]
