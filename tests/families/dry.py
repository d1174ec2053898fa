"""Dry runs of transformers' decoders: the server of ``tests.dry_runs``, with transformers imported ahead.

``python -m tests.families.dry`` is the server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from runner.spec import RunSpec
from tests import dry_runs
from tests.dry_runs import Outcome, Server


def outcomes(specs: Mapping[str, RunSpec]) -> Iterator[tuple[str, Outcome]]:
    """What each specification came to, one after the other: a rank's record, or the message that its run ended with."""
    with Server(__name__) as server:
        for name, spec in specs.items():
            yield name, server.outcome(spec)


def _serve() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM  # noqa: F401

    dry_runs._serve()


if __name__ == "__main__":
    _serve()
