"""Settings of the command line before torch is imported: freed memory, and waiting threads on a busy machine."""

import os
import sys
import time
from pathlib import Path

from gap.core.memory import keep_freed_memory
from gap.core.process import is_main_process

# Commands that compute nothing.
IDLE = ("classifiers", "data", "attacks", "configs")
POLICY = "OMP_WAIT_POLICY"
# A machine is busy if other processes use more than this share of the processors, measured for this many seconds.
BUSY, SECONDS = 0.35, 0.1


def prepare_machine(arguments: list[str]) -> None:
    """Set memory and threads for a command that computes.

    Waiting threads of OpenMP spin by default. That is faster on an idle machine and three times slower on a busy one,
    where they are set to sleep. A policy that the user set is not changed.
    """
    if arguments[0] in IDLE or "--help" in arguments or arguments[0].startswith("-"):
        return
    keep_freed_memory()
    if POLICY not in os.environ and (share := busy_share()) > BUSY:
        os.environ[POLICY] = "PASSIVE"
        if is_main_process():
            sys.stderr.write(f"gap: other work uses {share:.0%} of the processors; {POLICY}=PASSIVE is set\n")


def busy_share(seconds: float = SECONDS) -> float:
    """The share of the processors' time that is in use at present; 0 where it is unknown."""
    before = _times()
    time.sleep(seconds if before else 0)
    after = _times()
    if not before or not after or after[1] == before[1]:
        return 0.0
    return (after[0] - before[0]) / (after[1] - before[1])


def _times() -> tuple[int, int] | None:
    """The busy and the total time of all processors since the boot, in ticks."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    idle = sum(fields[3:5])  # idle, and waiting for disks
    return sum(fields) - idle, sum(fields)
