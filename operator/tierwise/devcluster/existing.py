"""A cluster that somebody else runs, used through its kubeconfig."""

import contextlib
import os
import re
import selectors
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tierwise.devcluster.cluster import COMMAND_TIMEOUT_SECONDS, find_program
from tierwise.devcluster.errors import DevClusterError
from tierwise.devcluster.processes import run

FORWARD_TIMEOUT_SECONDS = 20.0


@dataclass(slots=True)
class ExistingCluster:
    """A cluster behind a kubeconfig. Close it: port-forwards are processes of kubectl."""

    kubeconfig: Path
    context: str | None = None
    _forwards: dict[tuple[str, str, str], tuple[str, subprocess.Popen[str]]] = field(default_factory=dict, init=False)

    def _environment(self) -> dict[str, str]:
        return dict(os.environ) | {"KUBECONFIG": str(self.kubeconfig)}

    def _kubectl(self, *arguments: str) -> list[str]:
        return [find_program("kubectl"), *([] if self.context is None else [f"--context={self.context}"]), *arguments]

    def kubectl(
        self,
        *arguments: str,
        input_text: str | None = None,
        check: bool = True,
        timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl.

        Raises:
            DevClusterError: with kubectl's own words, unless ``check`` is false.
        """
        argv = self._kubectl(*arguments)
        return run(argv, env=self._environment(), input_text=input_text, check=check, timeout_seconds=timeout_seconds)

    def helm(
        self, *arguments: str, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run the Helm that is on the PATH."""
        program = shutil.which("helm")
        if program is None:
            raise DevClusterError("helm is not on the PATH")
        context = [] if self.context is None else [f"--kube-context={self.context}"]
        return run([program, *context, *arguments], env=self._environment(), timeout_seconds=timeout_seconds)

    def forward(self, namespace: str, service: str, port: int | str) -> str:
        """An address on this machine's loopback that leads to a Service's port, through ``kubectl port-forward``.

        kubectl ties it to one Pod: when that is gone, the next call makes a new forward at another address.
        """
        key = (namespace, service, str(port))
        known = self._forwards.get(key)
        if known is not None and known[1].poll() is None:
            return known[0]
        argv = self._kubectl("-n", namespace, "port-forward", "--address=127.0.0.1", f"service/{service}", f":{port}")
        process = subprocess.Popen(  # noqa: S603 - our own argument list
            argv,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            address = _announced_address(process)
        except DevClusterError:
            _end(process)
            raise
        self._forwards[key] = (address, process)
        return address

    def close(self) -> None:
        """End all port-forwards."""
        for _, process in self._forwards.values():
            _end(process)
        self._forwards.clear()


def _announced_address(process: subprocess.Popen[str]) -> str:
    """Wait for kubectl's "Forwarding from 127.0.0.1:NNNN -> PORT"."""
    said = ""
    deadline = time.monotonic() + FORWARD_TIMEOUT_SECONDS
    if process.stdout is None:
        raise DevClusterError("kubectl port-forward has no output")
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0 and selector.select(left):
            line = process.stdout.readline()
            said += line
            match = re.search(r"Forwarding from (127\.0\.0\.1:\d+)", line)
            if match is not None:
                return match[1]
            if not line:
                break
    raise DevClusterError(f"kubectl port-forward did not come up: {said.strip()}")


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    if process.poll() is None:
        process.kill()
        process.wait(timeout=5)
    if process.stdout is not None:
        process.stdout.close()
