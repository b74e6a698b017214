"""kopf watches, nothing else: handlers are `on.event` only, which leaves objects untouched, and hand every event over.

kopf runs in a thread and an event loop of its own. At exit it cancels every task that it finds in its loop, and an
error in a watch that it cannot mend ends it: neither may take the gateways' configuration server along. It is then
started anew; the relist covers what was missed.
"""

import asyncio
import contextlib
import random
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import kopf
import structlog
from kubernetes.aio import client as kube

from tierwise.adapters import kinds
from tierwise.adapters.kinds import Kind
from tierwise.runtime import objects

log = structlog.get_logger(__name__)

Sink: TypeAlias = Callable[[Kind, str | None, Mapping[str, Any]], None]

# A token that is projected into a Pod changes every hour; kopf asks again after this long.
LOGIN_LIFETIME = timedelta(minutes=10)
STEADY = timedelta(minutes=5)  # a run this long resets the backoff
RESTART_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
# It writes nothing that would have to be finished.
STOP_SECONDS = 3.0


@dataclass(slots=True)
class Watch:
    """Runs kopf until it is stopped.

    Args:
        configuration: how to reach the API server; its token is read anew at each login.
        namespaces: those to watch; empty: all.
        sink: gets kind, event type (None for the initial list) and object; called in the main loop.
        loop: the main loop.
        restarted: called, in the main loop, when kopf ended by itself.
    """

    configuration: kube.Configuration
    namespaces: tuple[str, ...]
    sink: Sink
    loop: asyncio.AbstractEventLoop
    restarted: Callable[[str], None] = lambda _: None
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Ask kopf to end, and wait for it, a bounded time."""
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    def _run(self) -> None:
        attempt = 0
        while not self._stop.is_set():
            started = datetime.now(UTC)
            reason = asyncio.run(self._operate())
            if self._stop.is_set():
                return
            if datetime.now(UTC) - started > STEADY:
                attempt = 0
            delay = RESTART_SECONDS[min(attempt, len(RESTART_SECONDS) - 1)]
            attempt += 1
            with contextlib.suppress(RuntimeError):  # the main loop is closed: we are ending
                self.loop.call_soon_threadsafe(self.restarted, reason)
            self._stop.wait(delay * (0.5 + random.random()))  # noqa: S311 - jitter

    async def _operate(self) -> str:
        """Run kopf until it ends; why it did."""
        task = asyncio.create_task(
            kopf.operator(
                registry=self._registry(),
                settings=self._settings(),
                standalone=True,  # its peering would pause all replicas of equal priority
                clusterwide=not self.namespaces,
                namespaces=self.namespaces,
                stop_flag=self._stop,
            )
        )
        # Waiting on a task tells any of kopf's errors, which it does not export, without a clause that catches all.
        await asyncio.wait({task})
        if task.cancelled():
            return "cancelled"
        error = task.exception()
        return "stopped" if error is None else f"{type(error).__name__}: {error}"

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(self._login)
        for kind in kinds.WATCHED:
            kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=f"seen-{kind.plural}")(
                self._handler(kind)
            )
        return registry

    def _handler(self, kind: Kind) -> Callable[..., Awaitable[None]]:
        async def seen(event: Mapping[str, Any], **_: object) -> None:
            with contextlib.suppress(RuntimeError):  # as above
                self.loop.call_soon_threadsafe(self.sink, kind, event.get("type"), event.get("object") or {})

        return seen

    def _settings(self) -> kopf.OperatorSettings:
        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        settings.scanning.disabled = True  # needs no right to list namespaces or definitions
        settings.peering.standalone = True
        settings.process.ultimate_exiting_timeout = None  # it would kill this thread's whole process
        settings.networking.request_timeout = 15
        settings.networking.connect_timeout = 3
        settings.networking.error_backoffs = (0.3, 0.5, 1, 1, 2, 2, 3, 3, 5, 5)
        settings.watching.reconnect_backoff = 0.2
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 330
        for kind in kinds.WATCHED:
            if not kind.ours:
                # Filtered by the API server: other people's objects never reach us.
                settings.watching.label_selectors[kind.group, kind.version, kind.plural] = objects.SELECTOR
        return settings

    async def _login(self, **_: object) -> kopf.ConnectionInfo:
        configuration = self.configuration
        header = await configuration.get_api_key_with_prefix("BearerToken")
        scheme, _space, token = (header or "").strip().partition(" ")
        return kopf.ConnectionInfo(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            insecure=not configuration.verify_ssl,
            username=configuration.username or None,
            password=configuration.password or None,
            scheme="Bearer" if token else None,
            token=token or scheme or None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
            expiration=datetime.now(UTC) + LOGIN_LIFETIME,
        )
