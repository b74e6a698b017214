"""Which replica decides: a Lease, by the election of the Kubernetes client, with its gaps closed.

Gaps (kubernetes 37.0.2): only ApiException is caught, so a lost connection would end the election; there is no release
at exit, so a successor waits out the Lease; times are local ones stamped as UTC (the process runs with TZ=UTC).

Losing the Lease does not end the process: it goes on serving configuration to its gateways. The deciding task is
cancelled and awaited before the Lease can expire for others; if it does not end in time, the process is ended instead.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TypeAlias

import aiohttp
import structlog
from kubernetes.aio import client as kube
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection import electionconfig, leaderelection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from tierwise.adapters.cluster import Cluster, ClusterError
from tierwise.runtime.heartbeat import Seen

log = structlog.get_logger(__name__)

# From the last renewal until this replica has stopped deciding passes at most: a pause (2), the deadline (5), one more
# attempt (2 calls of 1.5), a pause (2) and the stop (2): 14 s, less than the Lease lasts.
LEASE_SECONDS = 15
RENEW_SECONDS = 5.0
RETRY_SECONDS = 2.0
CALL_SECONDS = 1.5
STOP_SECONDS = 2.0
EXIT_FENCED = 70

Found: TypeAlias = tuple[bool, LeaderElectionRecord] | tuple[bool, Exception] | tuple[bool, None]


class _Lock(LeaseLock):
    """The library's Lease lock; every failure, also of the connection, is an answer, and every call has a time-out."""

    holder: str | None = None  # as of the last read
    answering = True
    seen = Seen()

    async def get(self, name: str, namespace: str) -> Found:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                found: Found = await super().get(name, namespace)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            found = False, ApiException(status=0, reason=f"{type(error).__name__}: {error}")
        self._tell(found)
        if isinstance(found[1], LeaderElectionRecord):
            self.holder = found[1].holder_identity
            self.seen.look(self.holder, found[1].renew_time, datetime.now(UTC))
        return found

    def _tell(self, found: Found) -> None:
        """Say once that the API server does not answer, and once that it does again."""
        error = found[1]
        failing = isinstance(error, ApiException) and error.status != HTTPStatus.NOT_FOUND
        if failing and self.answering:
            log.warning("the Lease cannot be read", error=str(getattr(error, "reason", error)))
        elif not failing and not self.answering:
            log.info("the Lease can be read again")
        self.answering = not failing

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        # The library's own passes `pretty=True`, which its generated client refuses: it wants a string.
        body = kube.V1Lease(metadata=kube.V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        return await self._answer(self._created(namespace, body))

    async def _created(self, namespace: str, body: kube.V1Lease) -> bool:
        try:
            self.lease_reference = await self.api_instance.create_namespaced_lease(namespace, body)
        except ApiException as error:
            log.debug("the Lease could not be created", error=str(error.reason))
            return False
        return True

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        return await self._answer(super().update(name, namespace, updated_record))

    async def _answer(self, call: Awaitable[bool]) -> bool:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await call
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.debug("the Lease could not be written", error=f"{type(error).__name__}: {error}")
            return False


class Leadership:
    """Takes part in the election until cancelled; runs `decide` while it leads.

    Args:
        cluster: connection to the API server.
        name, namespace: of the Lease.
        identity: this replica.
        decide: runs until it is cancelled, while this replica leads; it is told whether nobody else has led since it
            last did.
        failed: called when `decide` ended by itself.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        name: str,
        namespace: str,
        identity: str,
        decide: Callable[[bool], Awaitable[None]],
        failed: Callable[[BaseException | None], None],
    ) -> None:
        self._cluster = cluster
        self._name = name
        self._namespace = namespace
        self._identity = identity
        self._decide = decide
        self._failed = failed
        self._lock = _Lock(name, namespace, identity, cluster.api)
        self._lock.seen = Seen()
        self._task: asyncio.Future[None] | None = None
        self._led_before = False
        self.leading = False
        self.transitions = 0

    def decided_seconds(self) -> float | None:
        """Since when, as far as this replica saw, nobody has held the Lease; None: nobody ever did."""
        return self._lock.seen.age_seconds()

    async def run(self) -> None:
        """Take part in the election until cancelled; then give the Lease up."""
        try:
            while True:
                config = electionconfig.Config(
                    self._lock,
                    lease_duration=LEASE_SECONDS,
                    renew_deadline=RENEW_SECONDS,
                    retry_period=RETRY_SECONDS,
                    onstarted_leading=self._lead,
                    onstopped_leading=self._lost,
                )
                await leaderelection.LeaderElection(config).run()
        finally:
            await asyncio.shield(self._leave())

    async def _lead(self) -> None:
        self.leading = True
        self.transitions += 1
        log.info("this replica decides now", lease=f"{self._namespace}/{self._name}")
        undisturbed = self._led_before and self._lock.holder == self._identity
        self._led_before = True
        self._task = task = asyncio.ensure_future(self._decide(undisturbed))
        await asyncio.wait({task})
        if not task.cancelled():
            self._failed(task.exception())

    async def _lost(self) -> None:
        log.warning("the Lease was lost: another replica may decide now")
        await self._stop_deciding()

    async def _stop_deciding(self) -> None:
        self.leading = False
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        _, pending = await asyncio.wait({task}, timeout=STOP_SECONDS)
        if pending:
            # Two replicas must never write: rather no process than two deciding ones.
            log.critical("the deciding task did not end in time: ending the process")
            os._exit(EXIT_FENCED)

    async def _leave(self) -> None:
        led = self.leading
        await self._stop_deciding()
        if not led:
            return
        with contextlib.suppress(ClusterError):
            lease = await self._cluster.lease(self._namespace, self._name)
            if (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                version = str(lease["metadata"].get("resourceVersion", ""))
                await self._cluster.patch_lease_holder(self._namespace, self._name, resource_version=version)
                log.info("gave the Lease up")
