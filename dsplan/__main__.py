"""``python -m dsplan``."""

from __future__ import annotations

import sys

from dsplan.cli import main

sys.exit(main())
