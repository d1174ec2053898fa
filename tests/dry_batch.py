"""Many dry runs for one import of torch: ``python -m tests.dry_batch SPECS_JSON OUTPUT_DIR``.

A process that has imported torch, and nothing else, forks for each specification, two at a time; a dry run takes over
its whole process, so none can follow another in the same one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from runner.environment import child_environment
from runner.spec import RunSpec

ROOT = Path(__file__).parents[1]
_AT_ONCE = 2


def dry_runs(specs: dict[str, RunSpec], folder: Path, *, timeout_s: float) -> dict[str, dict[str, Any] | str]:
    """The record of each specification by its name, or the message that it ended with."""
    listed = folder / "specs.json"
    for name, spec in specs.items():
        (folder / name).mkdir()
        spec.write(folder / name / "spec.json")
    listed.write_text(json.dumps(list(specs)))
    env = child_environment(next(iter(specs.values())), os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tests.dry_batch", str(listed), str(folder)]
    subprocess.run(command, cwd=folder, env=env, check=True, timeout=timeout_s)
    return {name: _outcome(folder / name) for name in specs}


def _outcome(folder: Path) -> dict[str, Any] | str:
    record = folder / "record.json"
    if record.exists():
        found: dict[str, Any] = json.loads(record.read_text())
        return found
    (failure,) = folder.glob("failure-*.json")
    return str(json.loads(failure.read_text())["message"])


def _main() -> None:
    import torch._dynamo  # noqa: F401  # torch, which is most of what there is to import

    listed, folder = Path(sys.argv[1]), Path(sys.argv[2])
    running = 0
    for name in json.loads(listed.read_text()):
        if running == _AT_ONCE:
            os.wait()
            running -= 1
        if os.fork() == 0:
            _child(folder / name)
        running += 1
    for _ in range(running):
        os.wait()


def _child(folder: Path) -> None:
    """One dry run, in a process of its own that never returns."""
    with (folder / "log.txt").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(folder)
    spec = RunSpec.read(folder / "spec.json")
    os.environ.update(RANK=str(spec.rank), WORLD_SIZE=str(spec.gpus))
    from runner.train import Reporter, train

    reporter = Reporter(folder, spec.rank or 0)
    try:
        (folder / "record.json").write_text(json.dumps(train(spec, reporter)))
    except BaseException as error:
        traceback.print_exc()
        reporter.failure(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    _main()
