"""runner.device.fake.versions: the tested range, and what happens outside it."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from dsplan.errors import InputError
from dsplan.measurement import read_measurement
from runner.device.fake import versions
from runner.device.fake.versions import is_tested, require_tested

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("torch", "deepspeed", "expected"),
    [
        ("2.11.0+cu130", "0.19.8", True),
        ("2.12.1", "0.19.8", True),
        ("2.13.0+cpu", "0.19.8+2f1c2e5", True),
        ("2.13.0.dev20260401", "0.19.8", True),
        ("2.10.0", "0.19.8", False),
        ("2.14.0", "0.19.8", False),
        ("2.2.0", "0.19.8", False),  # not 2.20
        ("3.11.0", "0.19.8", False),
        ("2.13.0", "0.19.7", True),
        ("2.13.0", "0.19.4", True),
        ("2.13.0", "0.19.3", False),
        ("2.13.0", "0.19.9", False),
        ("2.13.0", "0.19.80", False),
        ("2.13.0", "0.20.0", False),
        ("of an unknown version", "0.19.8", False),
        ("2.13.0", "of an unknown version", False),
    ],
)
def test_the_range(torch: str, deepspeed: str, expected: bool) -> None:
    assert is_tested(torch, deepspeed) is expected


def install(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(versions, "version", version)


def test_outside_the_range_both_are_named_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, torch="2.9.1", deepspeed="0.18.0")
    with pytest.raises(InputError) as caught:
        require_tested(force=False)
    assert str(caught.value) == (
        "the dry run is tested with torch 2.11 to 2.13 and DeepSpeed 0.19.4 to 0.19.8, and this machine has torch "
        "2.9.1 and DeepSpeed 0.18.0: its numbers could be wrong, or it could break; install a tested pair, or make the "
        "dry run all the same with --force"
    )
    require_tested(force=True)


def test_a_package_without_a_version_is_not_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, torch="2.13.0")
    with pytest.raises(InputError, match="DeepSpeed of an unknown version"):
        require_tested(force=False)


def test_the_pair_that_these_tests_run_with_is_in_the_range() -> None:
    pytest.importorskip("deepspeed")
    require_tested(force=False)


def test_the_range_covers_the_records_and_what_is_installed_with_dsplan() -> None:
    """The records' versions are one end of the range; pip must be able to install DeepSpeed's."""
    found = [read_measurement(path).versions for path in (ROOT / "tests" / "data" / "measured").glob("*.json")]
    assert found
    assert [each for each in found if not is_tested(each["torch"], each["deepspeed"])] == []
    assert {each["torch"] for each in found} == {"2.11.0+cu130"}, "the docstring of versions.py says so"
    required = re.search(r'"deepspeed>=([\d.]+)', (ROOT / "pyproject.toml").read_text())
    assert required is not None
    assert is_tested("2.13.0", required[1])
