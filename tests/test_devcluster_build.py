"""How the development cluster's programs are found, built and guarded; no compiler runs here."""

import io
import multiprocessing
import os
import shutil
import subprocess
import time

import pytest
from click.testing import CliRunner
from rich.console import Console

from tierwise.devcluster import build, paths
from tierwise.devcluster import cluster as clusters
from tierwise.devcluster.cli import cluster as command
from tierwise.devcluster.errors import BuildError, DevClusterError, NotRunningError
from tierwise.devcluster.processes import run


@pytest.fixture
def console():
    return Console(file=io.StringIO(), force_terminal=False)


@pytest.fixture(autouse=True)
def homes(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "MAX_STATE_PATH", 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def fake_sources(tmp_path, monkeypatch):
    folder = tmp_path / "go"
    (folder / "node").mkdir(parents=True)
    (folder / "go.mod").write_text("module x\n\ngo 1.26.7\n")
    (folder / "node" / "node.go").write_text("package node\n")
    monkeypatch.setattr(paths, "GO_SOURCES", folder)
    return folder


def test_hash_follows_what_is_built(tmp_path, monkeypatch):
    folder = fake_sources(tmp_path, monkeypatch)
    before = build.source_hash()
    (folder / "node" / "node_test.go").write_text("package node\n")
    (folder / "README.md").write_text("words\n")
    assert build.source_hash() == before, "tests and words change no program"
    (folder / "node" / "node.go").write_text("package node // changed\n")
    assert build.source_hash() != before


def test_built_programs_are_not_built_again(console, monkeypatch):
    folder = paths.cache_home() / build.source_hash() / "bin"
    folder.mkdir(parents=True)
    for name in build.PROGRAMS:
        (folder / name).touch()
    monkeypatch.setattr(build, "_build", lambda *_: pytest.fail("built again"))
    assert build.binaries(console).helm == folder / "helm"


def test_only_the_newest_builds_are_kept_and_what_runs(monkeypatch, console):
    home = paths.cache_home()
    for age in range(6):
        folder = home / f"{age:016x}" / "bin"
        folder.mkdir(parents=True)
        os.utime(folder, (1000 - age, 1000 - age))
    runs = home / f"{5:016x}" / "bin" / "sleeper"
    shutil.copy(shutil.which("sleep"), runs)
    os.utime(runs.parent, (1, 1))
    (home / "go-12345").mkdir()
    process = subprocess.Popen([str(runs), "30"])
    try:
        monkeypatch.setattr(build, "_build", lambda wanted, _: wanted.folder.mkdir())
        build.binaries(console)
    finally:
        process.kill()
        process.wait()
    left = {folder.name for folder in home.iterdir()}
    assert left == {build.source_hash(), *(f"{age:016x}" for age in (0, 1, 2, 5)), "go-12345"}


def fake_go(folder, version):
    folder.mkdir(exist_ok=True)
    program = folder / "go"
    program.write_text(f"#!/bin/sh\necho {version}\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("version", "good"), [("go1.26.7", True), ("go1.27", True), ("go1.26.6", False), ("devel", False)]
)
def test_a_go_that_is_too_old_is_not_used(tmp_path, monkeypatch, console, version, good):
    fake_sources(tmp_path, monkeypatch)
    program = fake_go(tmp_path / "bin", version)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}/usr/bin{os.pathsep}/bin")
    installed = tmp_path / "installed"
    monkeypatch.setattr(build, "_install_go", lambda _: installed)
    found, env = build._go(console)
    assert found == str(program if good else installed / "go" / "bin" / "go")
    assert env["CGO_ENABLED"] == "0"


def test_a_failed_build_shows_the_compilers_words(tmp_path, monkeypatch, console):
    fake_sources(tmp_path, monkeypatch)
    program = tmp_path / "bin" / "go"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\ncase "$1" in env) echo go1.27.0;; list) echo x;; *) echo "x.go:1: bad" >&2; exit 1;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}/usr/bin{os.pathsep}/bin")
    with pytest.raises(BuildError, match=r"x\.go:1: bad"):
        build.binaries(console)
    assert not (paths.cache_home() / build.source_hash() / "bin").exists()


def _hold(path, started, seconds):
    with build.locked(path, Console(stderr=True), ""):
        started.set()
        time.sleep(seconds)
        path.unlink()


def test_a_lock_that_its_holder_removed_is_taken_anew(tmp_path, console):
    path = tmp_path / "lock"
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    holder = context.Process(target=_hold, args=(path, started, 0.3))
    holder.start()
    assert started.wait(30)
    with build.locked(path, console, ""):
        holder.join(10)
        assert holder.exitcode == 0
        assert path.exists(), "the lock is on the file of that name, not on the removed one"


@pytest.mark.parametrize("name", ["", "Upper", "-dash", "dash-", "a/b", "..", "x" * 41])
def test_names_that_could_be_no_folder_are_refused(name):
    for use in (clusters.up, clusters.get, clusters.down):
        with pytest.raises(DevClusterError, match="name"):
            use(name)


def test_what_does_not_run_says_how_to_start_it():
    with pytest.raises(NotRunningError, match="tierwise cluster up --name none"):
        clusters.get("none")
    result = CliRunner().invoke(command, ["status", "--name", "none"])
    assert result.exit_code == 1
    assert "tierwise cluster up" in result.output


def test_down_clears_what_a_crash_left(tmp_path):
    left = paths.clusters_home() / "crashed"
    (left / "run").mkdir(parents=True)
    # A process id that is somebody else's by now: ours. It must not be taken for the supervisor.
    (left / "run" / "supervisor.pid").write_text(f"{os.getpid()}\n")
    assert clusters.running_names() == []
    assert clusters.down("crashed")
    assert list((tmp_path / "state").iterdir()) == []
    assert not clusters.down("crashed")
    assert list((tmp_path / "cache").rglob("crashed")) == [], "nor does its lock stay"


def test_run_reports_a_programs_own_words():
    with pytest.raises(DevClusterError, match="ended with 3: why"):
        run(["sh", "-c", "echo why >&2; exit 3"], timeout_seconds=10)
    with pytest.raises(DevClusterError, match="longer than"):
        run(["sleep", "10"], timeout_seconds=0.1)
    with pytest.raises(DevClusterError, match="can not run"):
        run(["/does/not/exist"], timeout_seconds=1)
