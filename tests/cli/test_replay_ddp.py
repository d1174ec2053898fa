"""dsplan estimate --plan ddp: torch's DistributedDataParallel, by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsplan.catalogue import accelerator
from dsplan.cli import main
from dsplan.kernels import kernels_of
from dsplan.replay.cases import case
from dsplan.replay.walking import highest_step, walk_as

GIVEN = ("--model", "1.7B", "--gpus", "8", "--gpu", "a100-40gb", "--precision", "fp16")


def test_ddp_is_estimated_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("estimate", *GIVEN, "--plan", "ddp", "--json")) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    one = case("1.7B-ddp")
    assert one.model.shape is not None
    walked = walk_as(one.model.shape, one.plan, 8, kernels_of(accelerator("a100-40gb")))
    assert (plan["name"], plan["verdict"]) == ("ddp", "does not fit")  # torch 1.8 took less
    replayed = plan["device"]["steps_peak_bytes"]  # whole blocks, of which the walk knows the tensors
    assert 0 <= replayed - highest_step(walked).peak_bytes < 1e-4 * replayed


def test_it_is_no_row_and_cannot_be_emitted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(("estimate", *GIVEN)) == 0
    assert "ddp" not in capsys.readouterr().out
    assert main(("emit-config", *GIVEN, "--strategy", "ddp", "-o", str(tmp_path / "ds.json"))) == 2
    said = capsys.readouterr().err
    assert said == "dsplan: error: --strategy ddp: is torch's DDP, which reads no DeepSpeed configuration\n"
    assert not (tmp_path / "ds.json").exists()
