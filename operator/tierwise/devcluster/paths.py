"""Where things are kept, by the XDG base directory conventions."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tierwise.devcluster.errors import DevClusterError

PACKAGE = Path(__file__).parent
GO_SOURCES = PACKAGE / "go"
MANIFESTS = PACKAGE / "manifests"
# A control socket lies in the state folder, and a socket's address holds 107 bytes at most.
MAX_STATE_PATH = 80


def cache_home() -> Path:
    """Folder of what can be made again: the built programs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tierwise" / "devcluster"


def clusters_home() -> Path:
    """Folder that holds one folder for each cluster that runs."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "tierwise" / "clusters"


def requirements_file(name: str) -> Path:
    """A lock file: in the repository, or as it was bundled into the wheel."""
    for folder in (PACKAGE.parents[2] / "requirements", PACKAGE.parent / "_bundle" / "requirements"):
        if (folder / name).is_file():
            return folder / name
    raise DevClusterError(f"the lock file requirements/{name} is not part of this installation")


@dataclass(frozen=True, slots=True)
class State:
    """The files of one cluster."""

    root: Path

    @classmethod
    def of(cls, name: str) -> "State":
        """The files of the cluster of that name, whether it runs or not."""
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", name):
            raise DevClusterError(
                f"{name!r}: a cluster's name is made of lower-case letters, digits and dashes, 40 at most"
            )
        root = clusters_home() / name
        if len(os.fsencode(root)) > MAX_STATE_PATH:
            raise DevClusterError(f"{root} is too long for a Unix socket: choose a shorter name or XDG_STATE_HOME")
        if any(character in str(root) for character in ":,\\"):
            raise DevClusterError(f"{root}: colon, comma and backslash can not be part of an overlay's path")
        return cls(root)

    @property
    def pki(self) -> Path:
        """Certificates and keys."""
        return self.root / "pki"

    @property
    def run(self) -> Path:
        """Process ids and the control socket."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        """Logs of the components, and of Pods below ``pods``."""
        return self.root / "logs"

    @property
    def control_socket(self) -> Path:
        """Where the supervisor answers."""
        return self.run / "control.sock"

    @property
    def config(self) -> Path:
        """The supervisor's configuration."""
        return self.root / "cluster.json"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's, by the address on this machine's loopback."""
        return self.root / "kubeconfig"

    @property
    def inner_kubeconfig(self) -> Path:
        """The administrator's, by the address inside the cluster's network."""
        return self.root / "kubeconfig-inside"

    @property
    def audit_log(self) -> Path:
        """The API server's audit log, one JSON event a line."""
        return self.root / "audit.log"

    @property
    def images(self) -> Path:
        """The image table."""
        return self.root / "images.json"

    @property
    def metrics_rules(self) -> Path:
        """Rules of the metrics API, in prometheus-adapter's format."""
        return self.root / "metrics-rules.yaml"

    @property
    def resolv_conf(self) -> Path:
        """resolv.conf for programs that enter the cluster's network."""
        return self.root / "resolv.conf"

    def make(self) -> None:
        """Create the folders."""
        for folder in (self.pki, self.run / "pods", self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)
