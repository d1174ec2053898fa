"""A rank that ignores every polite request, and leaves children behind, one of them in another session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from tests.runner.children import stand_in

signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
sleeper = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]
subprocess.Popen(sleeper)
subprocess.Popen(sleeper, start_new_session=True)
stand_in.progress({"event": "stage", "text": "being stubborn"})
if "SUCCEED" in os.environ:
    stand_in.record()
else:
    time.sleep(600)
