"""Side by side, as ``tests.oracle.side`` for the grid of decoders: ``python -m tests.families.side TEXT ...``.

Of each setting whose name has one of the texts: where the requests of its dry run and those of the formulas' trace
differ first, over three steps.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from dsplan.catalogue import accelerator
from dsplan.events.read import read_events
from dsplan.kernels import kernels_of
from dsplan.verdict.trace import trace
from dsplan.walk import capacity_of
from tests.families.compared import STEPS, rank_of
from tests.families.dry import outcomes
from tests.families.grid import GRID, RANKS, TARGET, Setting
from tests.oracle.side import first_difference, of_dry_run, of_trace


def differences(settings: Iterable[Setting], folder: Path) -> Iterator[tuple[str, str | None]]:
    """Of each setting its name and the first difference, None where there is none; events are written to ``folder``."""
    by_name = {setting.name: setting for setting in settings}
    events = {name: folder / f"{number}.jsonl" for number, name in enumerate(by_name)}
    specs = {
        name: replace(setting.spec(rank_of(setting), steps=STEPS), events=str(events[name]))
        for name, setting in by_name.items()
    }
    target = accelerator(TARGET)
    for name, record in outcomes(specs):
        if isinstance(record, str):
            yield name, record
            continue
        setting = by_name[name]
        traced = trace(
            setting.model,
            setting.plan,
            RANKS,
            kernels_of(target),
            rank=record["rank"],
            capacity_bytes=capacity_of(target, RANKS),
            num_steps=STEPS,
        )
        yield name, first_difference(list(of_dry_run(read_events(events[name]))), list(of_trace(traced)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[2].strip())
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    texts = parser.parse_args().texts
    wanted = [setting for setting in GRID if any(text in setting.name for text in texts)]
    if not wanted:
        parser.error(f"no setting's name has {' or '.join(texts)}")
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, difference in differences(wanted, Path(folder)):
            different += difference is not None
            sys.stdout.write(f"{name}: {difference or 'the same'}\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
