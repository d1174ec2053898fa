"""Profiles by name: the user's, the shipped ones, the data sheets; and what is said of one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsplan.catalogue import accelerator
from dsplan.cli import main
from dsplan.errors import EXIT_OK, InputError
from dsplan.records import mistakes
from dsplan.timing import calibration
from dsplan.timing.profile import profile_of
from dsplan.timing.profiles import DATA_SHEETS, find_profile, shipped, shipped_names, user_file, user_folder
from dsplan.timing.rates import machine
from dsplan.timing.summary import summary
from tests.timing import profiles


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSPLAN_PROFILES", str(tmp_path))
    return tmp_path


def test_the_users_own_comes_before_the_shipped_one(own: Path) -> None:
    assert find_profile("h200").label == "NVIDIA H200"
    (own / "h200.json").write_text(json.dumps(profiles.document()))
    assert find_profile("h200").label == "made up"
    assert find_profile(str(own / "h200.json")).label == "made up"


def test_an_unknown_name_is_answered_with_the_nearest(own: Path) -> None:
    (own / "our-node.json").write_text(json.dumps(profiles.document()))
    with pytest.raises(InputError, match=r"--profile: unknown value 'our-nod'; did you mean our-node\?"):
        find_profile("our-nod")
    with pytest.raises(InputError, match=r"nowhere\.json"):
        find_profile("nowhere.json")


@pytest.mark.parametrize("name", ["", "a/b", "nominal", "x.json", "-x"])
def test_a_name_that_is_no_file_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"--name: .* is not allowed"):
        user_file(name)


def test_without_a_variable_profiles_lie_where_the_users_data_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSPLAN_PROFILES")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert user_folder() == Path("/data/dsplan/profiles")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert user_folder() == Path.home() / ".local" / "share" / "dsplan" / "profiles"


def test_every_shipped_profile_is_valid_and_belongs_to_a_catalogued_device() -> None:
    assert "h200" in shipped_names()
    for name in shipped_names():
        found = shipped(name)
        assert found is not None
        assert mistakes("profile", dict(found.document)) == []
        assert accelerator(name).name == name == found.name


def test_the_shipped_profile_is_taken_for_its_device_and_nominal_is_not_in_its_way() -> None:
    h200 = accelerator("h200")
    assert machine(h200).measured
    assert machine(h200).profile is shipped("h200")
    assert not machine(h200, find_profile("nominal")).measured
    assert find_profile("Nominal") is DATA_SHEETS
    assert not machine(accelerator("a100-40gb")).measured
    made = profiles.profile()
    assert machine(h200, made).profile is made


def test_source_date_and_versions_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    found = shipped("h200")
    assert found is not None
    assert found.description.startswith("h200 (2 x NVIDIA H200, 2026-")
    assert "torch 2." in found.description
    assert "deepspeed 0." in found.description
    main(["recommend", "--model", "gpt2", "--gpu", "h200", "--gpus", "2", "--micro-batch-size", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["profile"] == found.description


def test_a_profile_in_a_few_figures_is_its_rates() -> None:
    found = summary(profiles.profile())
    assert found["matrix products in bf16, TFLOPS"] == pytest.approx(profiles.HALF / 1e12)
    assert found["host to device, pinned, GB/s"] == pytest.approx(profiles.HOST_LINK / 1e9)
    assert found["CPU Adam, billion parameters a second"] == pytest.approx(1)
    assert found["drive, read, GB/s"] == pytest.approx(5)
    bare = profile_of({**profiles.document(), "drive": [], "collectives": []})
    assert not any("drive" in words or "all-" in words for words in summary(bare))


def test_calibrating_keeps_a_profile_that_a_command_can_name(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = own / "elsewhere" / "made.json"
    made.parent.mkdir()
    made.write_text(json.dumps(profiles.document()))
    asked: list[SimpleNamespace] = []

    def measured(output: Path, **options: object) -> object:
        asked.append(SimpleNamespace(output=output, **options))
        shutil.copy(made, output)
        return profile_of(profiles.document())

    monkeypatch.setattr(calibration, "run_calibration", measured)
    arguments = ["verify", "--calibrate", "--device", "cpu", "--gpus", "1", "--name", "our-node"]
    assert main([*arguments, "--nvme-path", str(own)]) == EXIT_OK
    said = capsys.readouterr().out
    assert "use it with --profile our-node" in said
    assert "CPU Adam" in said
    (one,) = asked
    assert (one.output, one.device, one.gpus, one.name) == (own / "our-node.json", "cpu", 1, "our-node")
    assert one.nvme_path == own
    assert find_profile("our-node").label == "made up"
    assert main([*arguments, "--json", "-o", str(own / "other.json")]) == EXIT_OK
    assert json.loads(capsys.readouterr().out)["file"] == str(own / "other.json")
