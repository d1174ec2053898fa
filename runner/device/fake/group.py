"""A process group of any size in one process: torch's own fake backend, which sends nothing anywhere."""

from __future__ import annotations

import torch.distributed
from torch.testing._internal.distributed import fake_pg

from runner.device.fake.backend import BACKEND


def join(rank: int, world_size: int, device_types: list[str]) -> None:
    """Make the default group, which DeepSpeed's ``init_distributed`` then finds; at most once in a process.

    torch registers the backend for the devices that it knows; the pretend device is added to them.
    """
    torch.distributed.Backend.register_backend(
        BACKEND, fake_pg._create_fake_pg, extended_api=True, devices=device_types
    )
    store = fake_pg.FakeStore()
    torch.distributed.init_process_group(BACKEND, store=store, rank=rank, world_size=world_size)
