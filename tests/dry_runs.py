"""Dry runs by the hundred: ``python -m tests.dry_runs < SPECIFICATIONS > RECORDS``, a line of JSON each way.

One process imports torch and all that DeepSpeed needs, and is forked for every specification, so that a dry run of
a small model costs a second and not four. What a run changes dies with its process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from runner.environment import child_environment
from runner.spec import RunSpec

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 300

#: The record of a rank, or the message that its run ended with.
Outcome: TypeAlias = "dict[str, Any] | str"


def dry_runs(
    specs: Mapping[str, RunSpec], *, jobs: int = 2, packages: Path | None = None
) -> Iterator[tuple[str, Outcome]]:
    """What each specification came to, with its name; ``jobs`` of them at a time.

    ``packages``: a folder whose packages come before those that are installed.
    """
    names = list(specs)
    with ThreadPoolExecutor(jobs) as pool:
        shares = [{name: specs[name] for name in names[start::jobs]} for start in range(jobs)]
        for outcomes in pool.map(lambda share: _asked(share, packages), shares):
            yield from outcomes


def _asked(specs: Mapping[str, RunSpec], packages: Path | None) -> list[tuple[str, Outcome]]:
    with Server(packages=packages) as server:
        return [(name, server.outcome(spec)) for name, spec in specs.items()]


class Server:
    """The process that is forked for every specification; it starts with the first one and ends with the context.

    ``module``: what is run in it, for other imports ahead. ``packages``: as of :func:`dry_runs`.
    """

    def __init__(self, module: str = __name__, packages: Path | None = None) -> None:
        self._module, self._packages = module, packages
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            with self._process as process:
                assert process.stdin is not None
                process.stdin.close()  # at whose end it leaves

    def outcome(self, spec: RunSpec) -> Outcome:
        """What ``spec`` came to."""
        process = self._process = self._process or self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asdict(spec)) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            assert process.stderr is not None
            raise AssertionError(f"the server of dry runs ended: {process.stderr.read()[-3000:]}")
        found: dict[str, Any] = json.loads(answer)
        error = found.get("error")
        return found if error is None else str(error)

    def _started(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "ignore", "-m", self._module]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if self._packages is not None:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(self._packages), env.get("PYTHONPATH", "")]))
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _serve() -> None:
    _import_ahead()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_forked(RunSpec(**json.loads(line)))) + "\n")
        sys.stdout.flush()


def _import_ahead() -> None:
    """All but DeepSpeed itself, which keeps what it finds of torch and of the accelerator when it is imported."""
    import hjson  # noqa: F401
    import numpy as np  # noqa: F401
    import pydantic  # noqa: F401
    import torch._subclasses.fake_tensor
    import torch.distributed.tensor
    import torch.fx.experimental.symbolic_shapes
    import torch.testing._internal.distributed.fake_pg
    import torch.utils.checkpoint  # noqa: F401


def _forked(spec: RunSpec) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        child = os.fork()
        if child == 0:
            _run(spec, folder)
        deadline = time.monotonic() + TIMEOUT_S
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return {"error": f"no result within {TIMEOUT_S} s"}
            time.sleep(0.01)
        record = folder / "record.json"
        if record.exists():
            return dict(json.loads(record.read_text(encoding="utf-8")))
        for failure in folder.glob("failure-*.json"):
            return {"error": json.loads(failure.read_text(encoding="utf-8"))["message"]}
        return {"error": (folder / "log").read_text(encoding="utf-8")[-3000:]}


def _run(spec: RunSpec, folder: Path) -> None:
    """In the child, which never returns."""
    with (folder / "log").open("w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        os.chdir(folder)
        os.environ.update(child_environment(spec, os.environ))
        from runner.train import Reporter, train

        reporter = Reporter(folder, spec.ranks[0])
        try:
            record = train(spec, reporter)
        except BaseException as error:
            reporter.failure(error)
            raise
        temporary = folder / "record.tmp"
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.replace(folder / "record.json")
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    _serve()
