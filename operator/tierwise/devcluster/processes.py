"""Running other programs: one place, so that every call has its time-out and its error says what was said."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tierwise.devcluster.errors import DevClusterError


def run(
    argv: Sequence[str],
    *,
    timeout_seconds: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input_text: str | None = None,
    check: bool = True,
    pass_fds: Sequence[int] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return what it said.

    Raises:
        DevClusterError: it could not be started, took too long or (with ``check``) ended badly; with its own words.
    """
    try:
        done = subprocess.run(  # noqa: S603 - callers pass argument lists of their own, never a shell's line
            list(argv),
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            env=None if env is None else dict(env),
            cwd=cwd,
            input=input_text,
            # Never the terminal: a program that asks a question must fail, not wait.
            stdin=subprocess.DEVNULL if input_text is None else None,
            pass_fds=pass_fds,
            check=False,
        )
    except OSError as error:
        raise DevClusterError(f"can not run {argv[0]}: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise DevClusterError(f"{' '.join(argv[:4])} ... took longer than {timeout_seconds:g} s") from error
    if check and done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-4000:]
        raise DevClusterError(f"{' '.join(argv[:6])} ended with {done.returncode}: {said}")
    return done
