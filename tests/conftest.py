"""What all tests run with: one thread a process, the long files first, real ranks that share one import of torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.forked_ranks import ForkedRanks

# Before torch is imported, here and in what tests start: several processes share the cores, and threads of OpenMP that
# wait for one another keep them busy meanwhile (a test of 1.4 s has taken 40 s of processor time beside others).
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Have pytest-xdist hand the files out in the order below, and not those with the most tests first."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m timing``, import only files that name the marker: four of two hundred, none of which needs torch."""
    if config.option.markexpr != "timing" or collection_path.suffix != ".py":
        return None
    return True if "mark.timing" not in collection_path.read_text(encoding="utf-8") else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start engines first: what is quick fills in at the end, while the last of them is still at work."""
    engines = {item.path for item in items if item.get_closest_marker("engine")}
    items.sort(key=lambda item: item.path not in engines)


@pytest.fixture(scope="session")
def forked_ranks() -> Iterator[ForkedRanks]:
    """Runs real ranks on the CPU (needs the run extra)."""
    from tests.forked_ranks import ForkedRanks

    with ForkedRanks() as ranks:
        yield ranks
