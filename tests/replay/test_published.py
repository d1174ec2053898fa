"""docs/published.md is what the command says today."""

from __future__ import annotations

from dsplan.replay.result import replay
from tests.replay.published import PAGE, page


def test_the_page_is_what_the_command_prints() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(replay()), "write it anew: python -m tests.replay.published"
