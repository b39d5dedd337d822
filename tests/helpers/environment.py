"""The environment of the processes that run tests, for libraries that read it when imported.

`tests/conftest.py` imports this module before any that imports torch.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""The processes that run tests would wait for each other's threads. A process that is forked from
one with such threads would wait for them for ever."""

for switch in ("prestart_worker_first_driver", "USAGE_STATS_ENABLED"):
    os.environ.setdefault(f"RAY_{switch}", "0")
"""Ray would start as many workers as there are CPUs, which run no actor, and count its users."""
