"""A rank that starts a helper, which fails, and goes on for a while before it succeeds."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.runner.children import stand_in

helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5); raise SystemExit(3)"])
stand_in.progress({"event": "stage", "text": "asking a helper"})
time.sleep(1.0)  # dead and not collected, for as long as it takes to be noticed
helper.wait()
time.sleep(0.5)
stand_in.record()
