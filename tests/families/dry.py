"""Dry runs of transformers' decoders: the server of ``tests.dry_runs``, with transformers imported ahead.

``python -m tests.families.dry`` is the server.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from runner.spec import RunSpec
from tests import dry_runs
from tests.dry_runs import Outcome

ROOT = Path(__file__).parents[2]


def outcomes(specs: Mapping[str, RunSpec]) -> Iterator[tuple[str, Outcome]]:
    """What each specification came to, one after the other: a rank's record, or the message that its run ended with."""
    command = [sys.executable, "-W", "ignore", "-m", __name__]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stderr is not None
        for name, spec in specs.items():
            server.stdin.write(json.dumps(asdict(spec)) + "\n")
            server.stdin.flush()
            answer = server.stdout.readline()
            assert answer, f"the server of dry runs ended: {server.stderr.read()[-3000:]}"
            found = json.loads(answer)
            yield name, found.get("error", found)
        server.stdin.close()


def _serve() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM  # noqa: F401

    dry_runs._serve()


if __name__ == "__main__":
    _serve()
