"""The last rank is killed, as the kernel does when host memory runs out; the others then fail."""

from __future__ import annotations

import os
import signal
import time

from tests.runner.children import stand_in

stand_in.progress({"event": "step", "step": 1, "steps": 4})
time.sleep(1.5)  # long enough for the ranks to be seen
if int(os.environ["WORLD_SIZE"]) == stand_in.RANK + 1:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.2)
stand_in.failure("error", "RuntimeError: Connection closed by peer")
raise SystemExit(1)
