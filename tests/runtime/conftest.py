"""Fixtures of the runtime's tests."""

import logging

import pytest
import runtime_fakes as make
import structlog

from tierwise.runtime.store import Store
from tierwise.runtime.telemetry import Metrics


@pytest.fixture
def cluster():
    return make.FakeCluster()


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def pokes():
    return []


@pytest.fixture
def store(pokes):
    return Store("op-0", pokes.append)


@pytest.fixture
def now():
    return make.NOW


@pytest.fixture
def logging_restored():
    """For a test that sets up logging: other tests keep what they had."""
    root = logging.getLogger()
    handlers, level, config = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**config)
