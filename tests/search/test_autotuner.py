"""The comparison with DeepSpeed's autotuner: what is read of its experiments, and what the document says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gpu.autotuner import Comparison
from tests.gpu.autotuner_report import RECORD, lines
from tests.regret import DOCUMENT, written


def test_experiments_are_read_as_the_autotuner_leaves_them(tmp_path: Path) -> None:
    for name, batch, speed in (
        ("z0_gas1_tmbspg1", 1, 10.0),
        ("z0_gas1_tmbspg8", 8, 30.0),
        ("z1_gas1_tmbspg9", 9, None),
    ):
        folder = tmp_path / "autotuning_results" / name
        folder.mkdir(parents=True)
        (folder / "ds_config.json").write_text(json.dumps({"train_micro_batch_size_per_gpu": batch}))
        if speed is not None:  # the third ran out of memory, or still runs
            (folder / "metrics.json").write_text(json.dumps({"throughput": speed}) + "\n")
    (tmp_path / "autotuning_results" / "profile_model_info").mkdir()
    compared = Comparison(tmp_path / "out.json", device="cpu", tiny=True, folder=tmp_path)
    tried = compared.experiments()
    assert {row["name"]: row["samples_per_s"] for row in tried} == {
        "z0_gas1_tmbspg1": 10.0,
        "z0_gas1_tmbspg8": 30.0,
        "z1_gas1_tmbspg9": None,
    }
    found = compared._found(tried, 0.0, finished=False)
    assert found["best"]["ds_config"]["train_micro_batch_size_per_gpu"] == 8
    assert found["num_experiments"] == 3
    planned = {"strategy": "zero1", "micro_batch_size": 4, "seconds": 1.0, "predicted_tokens_per_s": 5.0}
    text = "\n".join(lines({"dsplan": {**planned, "measured_tokens_per_s": 6.0}, "autotuner": found}))
    assert "| dsplan | zero1, micro batch 4 | 6 | 0 |" in text
    assert "| autotuner | zero0, micro batch 8 | failed: not run |" in text
    assert "3 experiments, ended by the limit" in text


@pytest.mark.skipif(not RECORD.exists(), reason="not measured yet")
def test_the_document_says_what_was_measured() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    document = json.loads(RECORD.read_text(encoding="utf-8"))
    assert written(text, "autotuner", lines(document)) == text, "python -m tests.gpu.autotuner_report"
