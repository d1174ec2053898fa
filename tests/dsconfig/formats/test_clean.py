"""Every strategy in every format passes dsplan check, read as its reader reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsplan.check.configuration import Run
from dsplan.check.run import check_files
from dsplan.dsconfig.auto import auto_keys
from dsplan.dsconfig.consumers import ACCELERATE, DEEPSPEED, HF, LIGHTNING
from dsplan.dsconfig.formats import FORMATS
from tests.dsconfig.strategies import CLUSTER, every_strategy

from .readers import target, written

CONSUMERS = {
    "deepspeed": DEEPSPEED,
    "hf": HF,
    "accelerate": ACCELERATE,
    "lightning": LIGHTNING,
    "launch": DEEPSPEED,
}


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_strategy_is_clean(format_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No error and no warning; of every "auto" it knows that the Trainer fills it in.

    Rules that weigh sizes against a model are for tests/check/test_emitted.py: sizes are alike in every format.
    """
    run = Run(consumer=CONSUMERS[format_name], world_size=CLUSTER.world_size)
    for plan in every_strategy():
        folder = tmp_path / plan.name
        emission = written(format_name, target(plan), folder)
        monkeypatch.chdir(folder)  # from where accelerate is started: its YAML names the other file
        paths = [folder / file.path for file in emission.files if file.path.suffix in (".json", ".yaml")]
        checked = check_files([path for path in paths if path.name != "training_arguments.json"], run)
        assert checked.configurations == (2 if format_name == "accelerate" else 1)  # the YAML names the other
        assert [finding.message for finding in checked.findings if finding.severity != "note"] == [], plan.name
        resolved = {finding.key for finding in checked.findings if finding.rule.id == "DS602"}
        assert resolved == set(auto_keys(emission.config)), plan.name
        assert bool(resolved) is (format_name == "hf")


def test_the_check_would_find_the_file_of_another_reader(tmp_path: Path) -> None:
    """What makes the formats differ is what the check finds with the wrong --for."""
    plan = every_strategy()[0]
    found = {}
    for format_name, consumer in (("hf", DEEPSPEED), ("deepspeed", LIGHTNING)):
        folder = tmp_path / format_name
        written(format_name, target(plan), folder)
        run = Run(consumer=consumer, world_size=CLUSTER.world_size)
        found[format_name] = {finding.rule.id for finding in check_files([folder / "ds_config.json"], run).findings}
    assert "DS601" in found["hf"]
    assert "DS303" in found["deepspeed"]
