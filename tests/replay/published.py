"""docs/published.md as ``dsplan replay`` makes it: ``python -m tests.replay.published`` writes it anew."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console

from dsplan.files import write_text
from dsplan.replay.result import Replay, replay
from dsplan.report.replay import print_replay

PAGE = Path(__file__).parents[2] / "docs" / "published.md"
WIDTH = 100

_BEFORE = """\
# What others published, against dsplan

`dsplan replay` holds published memory figures of DeepSpeed runs against the planner, and this page is what it prints.
The rows, each with its source, its machine, its software and what its figure is of, are data
(`dsplan/replay/cases.json`); `dsplan replay --json` prints them with the verdicts
([schema](../schemas/replay.schema.json)). Every other number is the planner's, and none is fitted to a row.

- **Peaks** are predicted for DeepSpeed 0.19.8. The runs of 2021 used DeepSpeed 0.3.12 or 0.3.13 and a torch that nobody
  stated, when 1.8 was current; those kept other things for other times. So each run is walked again by the rules of its
  day (`dsplan/replay/deepspeed_0_3_13.py`, read from that release, and `torch_1_8.py`), one rule after the other: what
  each is worth is the difference of two walks, so that they add up to the published figure with what remains open. A
  row that the planner misses by more than 12 % is *explained* when these rules bring it within 12 %.
- **DDP** is torch's DistributedDataParallel with native AMP, a plan of its own: fp32 weights, gradients, buckets and
  moments, and the copies of the weights that autocast makes.
- **Fits, or out of memory** asks `dsplan estimate`'s verdict for the card. `tight` counts as running: its expected need
  fits, if the allocator fragments little, and those who look for the largest model that runs go there.
- **Refused** rows are below what the device must hold however a stage is implemented, or are another run's figures.
- **The largest models** take the published rows' settings and add layers until the planner says no.

What the planner cannot say is left open there: the encoder-decoder and the convolutional network have no formulas here,
Gaudi's lazy mode is not CUDA, and of rows without versions, batches or bucket sizes no error means anything.

```text
"""
_AFTER = "```\n"


def page(result: Replay) -> str:
    """The whole page."""
    text = StringIO()
    print_replay(Console(file=text, width=WIDTH, highlight=False, emoji=False, markup=False), result)
    lines = [line.rstrip() for line in text.getvalue().strip().splitlines()]
    return _BEFORE + "\n".join(lines) + "\n" + _AFTER


if __name__ == "__main__":
    write_text(PAGE, page(replay()), force=True)
