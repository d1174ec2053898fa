"""How ladders are climbed, with a stand-in for the ranks: it lives up to an edge and is out of memory above it."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pytest

from tests.gpu import ladders
from tests.gpu.ladder import Ladder
from tests.gpu.ladder_settings import SECOND
from tests.gpu.ladders import Climbs

#: argv: edge, behaviour, folders. "unclean" ends after each rung, "hang" never ends the second, and of several ranks
#: those but the first wait for ever where the first dies.
CHILD = """
import json, os, pathlib, sys, time
edge, behaviour, folders, rank = int(sys.argv[1]), sys.argv[2], sys.argv[3:], int(os.environ["RANK"])
for number, folder in enumerate(map(pathlib.Path, folders)):
    size = int(folder.name)
    assert json.loads((folder / "spec.json").read_text())["ds_config"]["train_micro_batch_size_per_gpu"] == size
    if size > edge:
        if rank: time.sleep(60)
        (folder / "failure-0.json").write_text(json.dumps({"kind": "out_of_memory", "phase": "backward", "step": 1}))
        sys.exit(1)
    if behaviour == "hang" and number: time.sleep(60)
    record = {"device": {}, "versions": {}, "init": {}, "steps": []}
    (folder / "partial").write_text(json.dumps(record))
    (folder / "partial").rename(folder / f"rank-{rank}.json") if rank == 0 else (
        (folder / f"rank-{rank}.json").write_text(json.dumps(record)))
    if behaviour == "unclean": sys.exit(0)
"""


def _climb(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, edge: int, first: int, behaviour: str = "", ranks: int = 1
) -> Ladder:
    child = folder / "child.py"
    child.write_text(CHILD)
    monkeypatch.setattr(ladders, "CLIMBER", (str(child), str(edge), behaviour))
    monkeypatch.setattr(ladders, "GRACE_S", 0.2)
    monkeypatch.setattr(ladders, "RUNG_TIMEOUT_S", 0.7 if behaviour == "hang" else 20.0)
    monkeypatch.setattr(ladders, "START_TIMEOUT_S", 20.0)
    monkeypatch.setattr(ladders, "LAST_START_S", 0.0)
    setting = next(setting for setting in SECOND if setting.case.gpus == ranks)
    ladder = Ladder(setting=setting, secret=False, called_fits=first, first=first, host_bytes=0)
    arguments = argparse.Namespace(
        device="cuda", output=folder / "out.json", parallel=4, gpus=2, gpu_memory=125, host_memory=200, seconds=60.0
    )
    Climbs(arguments, [ladder], time.monotonic()).run()
    return ladder


@pytest.mark.parametrize(
    ("edge", "first", "behaviour", "ranks"),
    [(5, 5, "", 1), (5, 2, "", 1), (5, 8, "", 1), (5, 4, "unclean", 1), (5, 4, "", 2), (14, 3, "", 4), (0, 3, "", 1)],
)
def test_a_ladder_is_climbed_to_its_edge(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, edge: int, first: int, behaviour: str, ranks: int
) -> None:
    ladder = _climb(monkeypatch, tmp_path, edge=edge, first=first, behaviour=behaviour, ranks=ranks)
    assert ladder.bracket() == (edge, edge + 1)
    assert ladder.is_closed
    assert not ladder.failures
    assert edge + 2 in ladder.rungs  # what lies beyond the edge is asked too
    kept = json.loads((tmp_path / "out.json").read_text())["ladders"][0]
    assert (kept["largest_that_lived"], kept["smallest_that_died"]) == (edge, edge + 1)
    assert [rung["micro_batch_size"] for rung in kept["rungs"]] == sorted(ladder.rungs)


def test_a_rung_that_hangs_is_ended_and_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ladder = _climb(monkeypatch, tmp_path, edge=9, first=4, behaviour="hang")
    assert ladder.rungs[4]["outcome"] == "survived"
    assert ladder.failures
    assert not ladder.is_running
