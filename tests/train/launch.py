"""Jobs of several processes on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def launch(
    arguments: Sequence[str], *, launcher: Sequence[str] = TORCHRUN, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script, or `-m` and a module, in two processes; one that hangs fails."""
    return subprocess.run(
        [*launcher, *arguments], capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT | environment
    )
