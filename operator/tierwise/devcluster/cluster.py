"""Start, find, use and end a development cluster."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from tierwise import yaml_text
from tierwise.devcluster import build, components, paths, supervisor
from tierwise.devcluster.errors import DevClusterError, NotRunningError
from tierwise.devcluster.paths import State
from tierwise.devcluster.processes import run

DEFAULT_NAME = "tierwise"
COMMAND_TIMEOUT_SECONDS = 180.0
CONTROL_TIMEOUT_SECONDS = 10.0
# A second or two each on a quiet machine; a busy one may take its time.
START_TIMEOUT_SECONDS = 240.0
POLL_SECONDS = 0.2


class KubernetesCluster(Protocol):
    """What tests and the demo need of a cluster, whosoever it is."""

    @property
    def kubeconfig(self) -> Path:
        """The file that kubectl reads."""

    def kubectl(
        self,
        *arguments: str,
        input_text: str | None = None,
        check: bool = True,
        timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl against the cluster."""

    def helm(
        self, *arguments: str, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run Helm against the cluster."""

    def forward(self, namespace: str, service: str, port: int | str) -> str:
        """An address on this machine's loopback, "127.0.0.1:NNNN", that leads to a Service's port."""


@dataclass(frozen=True, slots=True)
class ComponentStatus:
    """One of the cluster's programs."""

    name: str
    pid: int | None
    """As this machine counts; None while it does not run."""
    ready: bool
    restarts: int
    running_seconds: float
    """Since the present process was started."""
    resident_bytes: int | None
    """Measured; None when it can not be read."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A development cluster that runs on this machine."""

    name: str
    state: State
    binaries: build.Binaries

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig, for programs on this machine."""
        return self.state.kubeconfig

    @property
    def audit_log(self) -> Path:
        """The API server's audit log: every write, and all requests by service accounts outside kube-system."""
        return self.state.audit_log

    def environment(self) -> dict[str, str]:
        """This process's environment, with KUBECONFIG set."""
        return dict(os.environ) | {"KUBECONFIG": str(self.kubeconfig)}

    def kubectl(
        self,
        *arguments: str,
        input_text: str | None = None,
        check: bool = True,
        timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator.

        Raises:
            DevClusterError: with kubectl's own words, unless ``check`` is false.
        """
        argv = [find_program("kubectl"), *arguments]
        return run(argv, env=self.environment(), input_text=input_text, check=check, timeout_seconds=timeout_seconds)

    def helm(
        self, *arguments: str, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run Helm as the administrator; its own files stay in the cluster's folder."""
        home = self.state.root / "helm"
        env = self.environment() | {
            "HELM_CACHE_HOME": str(home / "cache"),
            "HELM_CONFIG_HOME": str(home / "config"),
            "HELM_DATA_HOME": str(home / "data"),
        }
        return run([str(self.binaries.helm), *arguments], env=env, timeout_seconds=timeout_seconds)

    def forward(self, namespace: str, service: str, port: int | str) -> str:
        """An address on this machine's loopback that leads to a ready endpoint of a Service's port (number or name).

        It stays the same while the cluster runs. The endpoint is chosen anew for each connection, so it survives its
        Pods; a connection waits up to 5 s for one to be ready.
        """
        target = {"namespace": namespace, "service": service, "port": str(port)}
        known = self._ask({"operation": "lookup", **target}).get("address")
        if known:
            return str(known)
        with _loopback_listener() as listener:
            return str(self._ask({"operation": "forward", **target}, listener)["address"])

    def nsenter(self, argv: list[str]) -> list[str]:
        """The command line that runs a program inside the cluster's network, where Pods and Services can be reached.

        The program sees this machine's files, keeps its working directory and is an ordinary process of this machine.
        """
        pid = str(self.pid("supervisor"))
        tool = shutil.which("nsenter")
        if tool is None:
            return [str(self.binaries.devcluster), "enter", pid, *argv]
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return [tool, f"--target={pid}", *user, "--net", "--mount", f"--wdns={Path.cwd()}", "--", *argv]

    def pid(self, component: str) -> int:
        """The process id of a component ("supervisor", "etcd", "kube-apiserver", "node", ...), as this machine counts.

        Raises:
            NotRunningError: there is no such process.
        """
        try:
            return int((self.state.run / f"{component}.pid").read_text())
        except (OSError, ValueError) as error:
            raise NotRunningError(f"{component} of cluster {self.name} does not run") from error

    def pod_pids(self, namespace: str, pod: str) -> dict[str, int]:
        """The process ids, as this machine counts, of a Pod's containers that run now."""
        try:
            known = json.loads((self.state.run / "pods" / f"{namespace}_{pod}.json").read_text())
        except OSError as error:
            raise NotRunningError(f"no Pod {namespace}/{pod} on the node of cluster {self.name}") from error
        return {str(name): int(pid) for name, pid in known["containers"].items()}

    def status(self) -> list[ComponentStatus]:
        """All programs of the cluster, in the order in which they start."""
        answer = self._ask({"operation": "status"})
        root = self.pid("supervisor")
        statuses = [
            ComponentStatus(
                name="supervisor",
                pid=root,
                ready=True,
                restarts=0,
                running_seconds=supervisor.running_seconds(root),
                resident_bytes=supervisor.resident_bytes(root),
            )
        ]
        for item in answer["components"]:
            pid = int(item["pid"]) or None
            statuses.append(
                ComponentStatus(
                    name=str(item["name"]),
                    pid=pid,
                    ready=bool(item["ready"]),
                    restarts=int(item["restarts"]),
                    running_seconds=float(item["seconds"]),
                    resident_bytes=None if pid is None else supervisor.resident_bytes(pid),
                )
            )
        return statuses

    def add_metrics_rules(self, rules: Mapping[str, object]) -> None:
        """Set the metrics API's rules, in prometheus-adapter's format (``rules`` and ``externalRules``).

        ConfigMaps with the label tierwise.dev/metrics-rules are read as well.
        """
        temporary = self.state.metrics_rules.with_suffix(".new")
        temporary.write_text(yaml_text.dump(dict(rules), sort_keys=True), encoding="utf-8")
        temporary.replace(self.state.metrics_rules)

    def add_image(self, image: str, entrypoint: list[str], *, folders: list[str] | None = None) -> None:
        """Let a local program stand for images of that name (a glob), before all others in the table."""
        known = json.loads(self.state.images.read_text())
        entry = {"image": image, "entrypoint": entrypoint, "path": folders or [], "env": {}}
        temporary = self.state.images.with_suffix(".new")
        temporary.write_text(json.dumps([entry, *known], indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.state.images)

    def down(self) -> None:
        """End everything and remove the cluster's folder, logs included."""
        down(self.name)

    def _ask(self, question: Mapping[str, str], listener: socket.socket | None = None) -> dict[str, Any]:
        message = json.dumps(question).encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.settimeout(CONTROL_TIMEOUT_SECONDS)
            try:
                control.connect(str(self.state.control_socket))
                socket.send_fds(control, [message], [] if listener is None else [listener.fileno()])
                text = b"".join(iter(lambda: control.recv(65536), b""))
            except OSError as error:
                raise NotRunningError(f"the supervisor of cluster {self.name} does not answer: {error}") from error
        answer: dict[str, Any] = json.loads(text)
        if "error" in answer:
            raise DevClusterError(str(answer["error"]))
        return answer


def get(name: str = DEFAULT_NAME) -> Cluster:
    """The running cluster of that name.

    Raises:
        NotRunningError: it does not run.
    """
    state = State.of(name)
    if not supervisor.runs(state):
        raise NotRunningError(f"no cluster {name!r} runs: start it with `tierwise cluster up --name {name}`")
    config = json.loads(state.config.read_text())
    return Cluster(name, state, build.Binaries(Path(config["components"][0]["argv"][0]).parent))


def down(name: str = DEFAULT_NAME, console: Console | None = None) -> bool:
    """End a cluster and remove all that it made, or what a crash left of it; false when there was nothing.

    Raises:
        DevClusterError: it does not end.
    """
    state = State.of(name)
    with _locked(name, console or Console(stderr=True)):
        was_there = state.root.exists()
        _down(state)
        _lock_file(name).unlink()
    return was_there


def _down(state: State) -> None:
    pid = supervisor.pid_of(state)
    if pid is not None:
        supervisor.end(pid, state)
    supervisor.remove(state)


def _lock_file(name: str) -> Path:
    return paths.cache_home() / "locks" / name


def _locked(name: str, console: Console) -> contextlib.AbstractContextManager[None]:
    return build.locked(_lock_file(name), console, f"another process starts or ends cluster {name}: waiting for it")


def running_names() -> list[str]:
    """The names of all clusters that run."""
    home = paths.clusters_home()
    return sorted(folder.name for folder in home.iterdir() if supervisor.runs(State(folder))) if home.is_dir() else []


def up(
    name: str = DEFAULT_NAME,
    *,
    gpus: int = 64,
    console: Console | None = None,
    scrape_interval: str = "1s",
    monitoring: bool = True,
    prometheus: str = components.DEFAULT_PROMETHEUS,
) -> Cluster:
    """Start a cluster, or return the one of that name that runs.

    Returns when the node is ready and, with ``monitoring``, Prometheus too. Says on the console what it does.

    Args:
        name: of the cluster, part of a folder's name.
        gpus: how many of nvidia.com/gpu the node says it has.
        console: where progress goes; standard error by default.
        scrape_interval: Prometheus's, as it writes durations.
        monitoring: whether to run Prometheus.
        prometheus: address that the metrics API asks, as seen inside the cluster.

    Raises:
        BuildError: the programs could not be built.
        DevClusterError: it did not come up; with the last lines of what failed.
    """
    console = console or Console(stderr=True)
    state = State.of(name)
    with _locked(name, console):
        if supervisor.runs(state):
            return get(name)
        # What a crash may have left: the supervisor is dead, so nothing else of it lives.
        supervisor.remove(state)
        programs = build.binaries(console)
        began = time.monotonic()
        cluster = _start(name, state, programs, components.Options(gpus=gpus, prometheus=prometheus))
        try:
            _await_components(cluster, console, began)
            _install(cluster, console, began, scrape_interval if monitoring else None)
        except BaseException:
            _down(state)
            raise
    return cluster


def _start(name: str, state: State, programs: build.Binaries, options: components.Options) -> Cluster:
    state.make()
    with _loopback_listener() as listener:
        components.write(state, name, programs, listener.getsockname()[1], options)
        argv = [str(programs.devcluster), "launch", str(state.config), str(listener.fileno())]
        try:
            run(argv, pass_fds=[listener.fileno()], timeout_seconds=30)
        except DevClusterError as error:
            supervisor.remove(state)
            raise DevClusterError(
                f"{error}\nA cluster needs network, mount and PID namespaces: run as root, or let users make them "
                "(sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)."
            ) from error
    return Cluster(name, state, programs)


def _await_components(cluster: Cluster, console: Console, began: float) -> None:
    deadline = began + START_TIMEOUT_SECONDS
    shown: set[str] = set()
    while True:
        waiting = ["supervisor"]
        try:
            statuses = cluster.status()
        except NotRunningError:
            statuses = []
            if not supervisor.runs(cluster.state):
                raise DevClusterError(
                    f"the supervisor ended at once:\n{supervisor.tail(cluster.state.logs / 'supervisor.log')}"
                ) from None
        if statuses:
            waiting = [status.name for status in statuses if not status.ready]
            for status in statuses:
                if status.ready and status.name not in shown:
                    shown.add(status.name)
                    console.print(f"  {time.monotonic() - began:5.1f} s  {status.name}")
        if not waiting:
            return
        if time.monotonic() > deadline:
            tails = "\n".join(f"--- {name}\n{supervisor.tail(cluster.state.logs / f'{name}.log')}" for name in waiting)
            raise DevClusterError(f"not ready after {START_TIMEOUT_SECONDS:g} s: {', '.join(waiting)}\n{tails}")
        time.sleep(POLL_SECONDS)


def _install(cluster: Cluster, console: Console, began: float, scrape_interval: str | None) -> None:
    """Register the metrics API and run Prometheus."""
    text = (paths.MANIFESTS / "metrics-api.yaml").read_text(encoding="utf-8")
    if scrape_interval is not None:
        monitoring = (paths.MANIFESTS / "monitoring.yaml").read_text(encoding="utf-8")
        text += "---\n" + monitoring.replace("SCRAPE_INTERVAL", scrape_interval)
    # The default service account is made by a controller a moment after its namespace.
    cluster.kubectl("apply", "--server-side", "-f", "-", input_text=text)
    cluster.kubectl("wait", "--for=condition=Ready", "node", components.NODE_NAME, "--timeout=120s")
    console.print(f"  {time.monotonic() - began:5.1f} s  node is ready")
    if scrape_interval is not None:
        try:
            cluster.kubectl("-n", "monitoring", "rollout", "status", "deployment/prometheus", "--timeout=120s")
        except DevClusterError as error:
            seen = cluster.kubectl("-n", "monitoring", "get", "pods,events", check=False).stdout
            raise DevClusterError(f"{error}\n{seen}") from error
        console.print(f"  {time.monotonic() - began:5.1f} s  Prometheus is ready")


def find_program(name: str) -> str:
    """A program of this Python environment, or of the PATH.

    Raises:
        DevClusterError: there is none.
    """
    own = Path(sys.executable).parent
    found = shutil.which(name, path=f"{own}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if found is None:
        raise DevClusterError(f"{name} is not installed: pip install 'tierwise[devcluster]'")
    return found


def _loopback_listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=1024)
