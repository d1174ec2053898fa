"""A parent that a test can interrupt or kill: ``python -m ...parent MODULE OUTPUT_DIR RANKS [small]``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from runner import launch
from runner.spec import RunSpec
from tests.runner.supervised import use_small_launcher

module, output_dir, ranks, *small = sys.argv[1:]
patch = pytest.MonkeyPatch()
if small:
    use_small_launcher(patch)
spec = RunSpec(model={}, ds_config={}, sequence_length=8, gpus=int(ranks))
launch.run(spec, Path(output_dir), timeout_s=120, on_progress=lambda _: None, module=module)
