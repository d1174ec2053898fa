"""DeepSpeed's launcher in small, for tests that need none of torch: it starts the ranks and passes on how one fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

num_ranks, command = int(sys.argv[1]), sys.argv[2:]
with socket.socket() as listener:  # where the ranks find each other, should they want to
    listener.bind(("127.0.0.1", 0))
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}
ranks = [
    subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)},
    )
    for rank in range(num_ranks)
]


def end(number: int, code: int = 1) -> None:
    for rank in ranks:
        rank.terminate()
    deadline = time.monotonic() + 30  # as DeepSpeed's does
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    sys.exit(code)


signal.signal(signal.SIGTERM, lambda number, _: end(number))
while any(rank.poll() is None for rank in ranks):
    time.sleep(0.5)
    for rank in ranks:
        if rank.poll():
            end(signal.SIGTERM, rank.returncode)
for rank in ranks:
    if rank.returncode:
        sys.exit(rank.returncode)
