"""What dsplan emits is clean under its own check."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings

from dsplan.check.configuration import Run
from dsplan.check.run import check_files
from dsplan.dsconfig.emit import emit
from dsplan.plan import Plan
from tests.dsconfig.strategies import CLUSTER, MODEL, every_strategy, plans


def grave(plan: Plan, folder: Path, run: Run) -> list[str]:
    path = folder / "ds_config.json"
    path.write_text(json.dumps(emit(plan, MODEL, CLUSTER), indent=2))
    findings = check_files([path], run).findings
    return [f"{plan.name}: {finding.message}" for finding in findings if finding.severity != "note"]


def test_every_strategy_is_clean(tmp_path: Path) -> None:
    run = Run(world_size=CLUSTER.world_size, model=MODEL)
    assert [line for plan in every_strategy() for line in grave(plan, tmp_path, run)] == []


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans())
def test_any_plan_is_emitted_without_error(plan: Plan, tmp_path: Path) -> None:
    """A plan may ask for what its stage ignores, which is a warning; never for what DeepSpeed refuses."""
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps(emit(plan, MODEL, CLUSTER)))
    findings = check_files([path], Run(world_size=CLUSTER.world_size, model=MODEL, notes=True)).findings
    assert [finding for finding in findings if finding.severity == "error"] == []
