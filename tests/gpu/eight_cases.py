"""Eight ranks on eight cards of one host, which nobody has run yet: the published benchmark's models, and their speed.

``python -m tests.gpu.sweep eight tests/data/eight_records.json --gpus 8 --seconds 1500 --case-timeout 400``, then
``python -m tests.gpu.sweep throughput-8 THROUGHPUT.json --gpus 8`` and ``python -m tests.throughput THROUGHPUT.json``.
"""

from __future__ import annotations

from dataclasses import replace

from tests.gpu.ddp_cases import THROUGHPUT
from tests.gpu.shared_cases import SHARED_8_ON_4

#: The cases that were run on four cards, each rank on a card of its own: device memory, and what NCCL takes.
EIGHT = [replace(case, name=case.name.removesuffix("-on4"), devices=None, steps=4) for case in SHARED_8_ON_4]

THROUGHPUT_8 = [replace(case, gpus=8) for case in THROUGHPUT]
