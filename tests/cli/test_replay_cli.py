"""dsplan replay, as a person types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dsplan import verification
from dsplan.errors import EXIT_MISSING_EXTRA, EXIT_PREDICTION_MISSED, MissingExtraError
from dsplan.replay import result, verdicts
from dsplan.replay.verdicts import Row
from dsplan.schemas import schema
from tests.cli.conftest import Run


def test_the_tables(run: Run) -> None:
    done = run("replay")
    assert (done.code, done.err) == (0, "")
    assert max(len(line) for line in done.out.splitlines()) <= 80
    for text in ("1.7B-zero3-offload-ckpt", "explained", "refused", "not judged", "zero3-offload-ckpt     48.33B"):
        assert text in done.out
    assert done.out.splitlines()[-1].startswith("All ")


def test_json_is_valid_and_says_the_same(run: Run) -> None:
    import jsonschema

    done = run("replay", "--json")
    document = json.loads(done.out)
    jsonschema.validate(document, schema("replay"))
    assert (done.code, document["holds"]) == (0, True)
    rows = {row["case"]: row for row in document["rows"]}
    assert rows["1.7B-ddp"]["technique"] == "ddp"
    assert "SeanNaren/minGPT" in rows["1.7B-ddp"]["source"]
    assert {line["source"] for table in document["phases"] for line in table["lines"]} == {"published", "formula"}


def test_a_verdict_that_does_not_hold_is_exit_code_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_fails(on_progress: Callable[[], None]) -> list[Row]:
        found = list(verdicts.rows(on_progress))
        return [replace(row, holds=False, verdict="wrong") if row.case == "largest-ddp" else row for row in found]

    monkeypatch.setattr(result, "rows", one_fails)
    done = run("replay")
    assert done.code == EXIT_PREDICTION_MISSED
    assert "1 of 58 verdicts are not as they should be: largest-ddp" in done.out


def test_dry_runs_stand_beside_gaudis_tables(run: Run, stand_in: Callable[..., list[dict[str, Any]]]) -> None:
    seen = stand_in()
    document = json.loads(run("replay", "--dry-run", "--json").out)
    for table in document["phases"]:
        assert [line["source"] for line in table["lines"]] == [*["published"] * 2, *["formula"] * 2, *["dry run"] * 2]
    assert [spec["ds_config"]["zero_optimization"]["stage"] for spec in seen] == [0, 1, 1, 2]
    assert {(spec["device"], spec["target"]["name"], spec["gpus"]) for spec in seen} == {("fake", "gaudi", 8)}


def test_a_dry_run_needs_the_run_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise MissingExtraError("a verification run needs torch")

    monkeypatch.setattr(verification, "run_verification", missing)
    done = run("replay", "--dry-run")
    assert (done.code, done.out) == (EXIT_MISSING_EXTRA, "")
    assert done.err == "dsplan: error: a verification run needs torch\n"


def test_an_unknown_option_is_one_line(run: Run) -> None:
    assert "--fast" in run("replay", "--fast").error()
