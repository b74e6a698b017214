import os
import shutil
import sys
from pathlib import Path

import pytest
import pytest_asyncio
from envoy_lab import Lab, Upstream


@pytest.fixture(scope="session", autouse=True)
def envoy_on_path():
    """The wheel's Envoy is beside the interpreter; `PATH` need not name it."""
    beside = str(Path(sys.executable).parent)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{beside}{os.pathsep}{before}"
    if shutil.which("envoy") is None:
        pytest.fail("no envoy: install the extra `devcluster`")
    yield
    os.environ["PATH"] = before


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory):
    """One Envoy for all tests of a module; each publishes its own world."""
    started = Lab(tmp_path_factory.mktemp("lab"))
    try:
        yield await started.start()
    finally:
        await started.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def upstream(lab):  # noqa: ARG001 - asks for it so that upstreams end before the gateway
    """Makes upstreams, and stops them after the test."""
    made: list[Upstream] = []

    async def make(name, context=None, **fields):
        made.append(await Upstream(name, **fields).start(context))
        return made[-1]

    yield make
    for each in made:
        await each.stop()
