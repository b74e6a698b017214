"""How busy the machine was: shares of its processors' time, from /proc."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds since boot, over all processors."""

    busy_seconds: float
    total_seconds: float

    def share_since(self, earlier: "CpuTimes") -> float | None:
        """Share of the time between that all processors together were busy, 0 to 1; None when none has passed."""
        total = self.total_seconds - earlier.total_seconds
        return (self.busy_seconds - earlier.busy_seconds) / total if total > 0 else None


def parse(stat: str) -> CpuTimes:
    """From the text of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal in clock ticks."""
    ticks = os.sysconf("SC_CLK_TCK")
    values = [int(word) for word in stat.splitlines()[0].split()[1:9]]
    idle = values[3] + values[4]
    return CpuTimes((sum(values) - idle) / ticks, sum(values) / ticks)


def now() -> CpuTimes | None:
    """At this moment; None where there is no /proc/stat."""
    try:
        return parse(Path("/proc/stat").read_text(encoding="ascii"))
    except OSError:
        return None
