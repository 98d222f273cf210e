"""What the times depend on besides the program: the processor's instructions, and who else uses it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

INSTRUCTIONS = ("amx_bf16", "amx_tile", "avx512_bf16", "avx512f", "avx2")
CPUINFO, STAT = Path("/proc/cpuinfo"), Path("/proc/stat")
QUIET = 0.05  # the share of others that is no disturbance
IDLE = slice(3, 5)  # idle and waiting for a disk, in /proc/stat
GUEST = 8  # what follows is counted twice there


def instructions() -> Sequence[str]:
    """Which of ``INSTRUCTIONS`` the processor has, as far as the system tells (Linux on x86)."""
    if not CPUINFO.exists():
        return [f"unknown on {platform.system()}"]
    flags = next((line for line in CPUINFO.read_text().splitlines() if line.startswith("flags")), "").split()
    return [feature for feature in INSTRUCTIONS if feature in flags]


class Others:
    """Watches what other processes take of the processor from now on.

    Threads that wait for each other lose far more than that share when one of them is kept off its core, and a
    program that makes thousands of small parallel calls loses most: ratios taken then are not to be trusted.
    """

    def __init__(self) -> None:
        self.before = _usage()

    def share(self) -> float | None:
        """The fraction of all cores' time, 0 to 1; None where the system does not tell (it is Linux that does)."""
        if self.before is None or (now := _usage()) is None:
            return None
        total, busy, own = (b - a for a, b in zip(self.before, now, strict=True))
        return max(0.0, busy - own) / total if total > 0 else None


def _usage() -> tuple[float, float, float] | None:
    """Seconds so far: of all cores, of them busy, and of them by this process and its finished children."""
    if not STAT.exists():
        return None
    ticks = [int(word) for word in STAT.read_text().splitlines()[0].split()[1 : GUEST + 1]]
    second = os.sysconf("SC_CLK_TCK")
    return sum(ticks) / second, (sum(ticks) - sum(ticks[IDLE])) / second, sum(os.times()[:4])
