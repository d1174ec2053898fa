"""What a dry run changes in torch and DeepSpeed: nothing before it is opened, and nothing once it has been left."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("deepspeed")

ROOT = Path(__file__).parents[3]


@lru_cache
def inside(*arguments: str) -> Any:
    """The result of a function of tests.runner.fake.inside, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.runner.fake.inside", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.engine
def test_importing_dsplan_and_runner_patches_nothing() -> None:
    assert inside("importing") == []


@pytest.mark.engine
@pytest.mark.parametrize("device", ["cpu", "pretend"])
def test_every_patch_replaces_what_upstream_has_and_is_undone(device: str) -> None:
    patches = inside("patching", device)
    assert {patch["name"] for patch in patches} >= {"Module._apply", "FakeTensor.data", "OpBuilder.load"}
    gone = [patch["name"] for patch in patches if not patch["there"]]
    assert gone == [], "upstream no longer has what these patches replace: read their reasons in patches.py"
    assert [patch["name"] for patch in patches if not patch["replaced"]] == []
    assert [patch["name"] for patch in patches if not patch["undone"]] == []
    assert [patch["name"] for patch in patches if len(patch["reason"]) < 20] == []


@pytest.mark.engine
def test_on_the_cpu_less_is_pretended() -> None:
    assert len(inside("patching", "cpu")) < len(inside("patching", "pretend"))


@pytest.mark.engine
def test_deepspeed_must_not_have_been_imported() -> None:
    assert inside("importing_deepspeed_late") == (
        "DeepSpeed was imported before the pretend accelerator could take its place"
    )


def test_a_patch_is_undone_also_where_the_attribute_was_inherited() -> None:
    from runner.device.fake.patches import Patch

    class Base:
        kept = "base"

    class Owner(Base):
        own = "owner"

    def fail(attribute: str) -> None:
        with Patch(Owner, attribute, "replaced", "a test").applied():
            assert getattr(Owner, attribute) == "replaced"
            raise KeyError

    for attribute in ("own", "kept"):
        with pytest.raises(KeyError):
            fail(attribute)
    assert (Owner.own, Owner.kept, "kept" in vars(Owner)) == ("owner", "base", False)


def test_a_patch_of_what_upstream_no_longer_has_is_refused_by_name() -> None:
    from runner.device.fake.patches import Patch

    class Owner:
        pass

    patch = Patch(Owner, "gone", "replaced", "torch does this and that")
    with pytest.raises(RuntimeError, match=r"Owner\.gone.*torch does this and that"), patch.applied():
        pass
    assert not hasattr(Owner, "gone")
