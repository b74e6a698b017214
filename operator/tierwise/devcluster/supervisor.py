"""The one process that holds a development cluster: whether it lives, how it ends, what it leaves."""

import contextlib
import os
import re
import select
import shutil
import signal
from pathlib import Path

from tierwise.devcluster.errors import DevClusterError
from tierwise.devcluster.paths import State

END_TIMEOUT_SECONDS = 15.0


def pid_of(state: State) -> int | None:
    """The supervisor's process id, if a process of that id is this cluster's supervisor."""
    try:
        pid = int((state.run / "supervisor.pid").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if b"supervise" in words and os.fsencode(state.config) in words else None


def runs(state: State) -> bool:
    """Whether the cluster's supervisor lives."""
    return pid_of(state) is not None


def end(pid: int, state: State) -> None:
    """End the supervisor; with it goes everything in its namespaces.

    Its process descriptor becomes readable when its last thread has ended, and the last thread of process 1 of a PID
    namespace ends after the kernel has killed and collected all others in it.

    Raises:
        DevClusterError: it does not end.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if pid_of(state) != pid:
            return
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, kind)
            if poll.poll(END_TIMEOUT_SECONDS * 1000):
                return
    finally:
        os.close(descriptor)
    raise DevClusterError(f"process {pid} does not end")


def remove(state: State) -> None:
    """Remove the cluster's folder, and those above it that it leaves empty."""
    if state.root.exists():
        shutil.rmtree(state.root)
    for folder in (state.root.parent, state.root.parent.parent):
        # Only when nothing else is in it.
        with contextlib.suppress(OSError):
            folder.rmdir()


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log, or why it can not be read."""
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError as error:
        return str(error)


def resident_bytes(pid: int) -> int | None:
    """Memory of a process, measured; None when it can not be read."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    match = re.search(r"^VmRSS:\s+(\d+) kB$", text, re.MULTILINE)
    return None if match is None else int(match[1]) * 1024


def running_seconds(pid: int) -> float:
    """Age of a process in seconds, from its start in clock ticks since boot."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")
