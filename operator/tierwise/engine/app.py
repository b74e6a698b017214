"""The HTTP server of the simulator: routes, keys, faults, streaming, draining."""

import asyncio
import contextlib
import enum
import logging
import math
import os
import random
import socket
import ssl
import time
import uuid
from collections.abc import AsyncIterator

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tierwise import __version__
from tierwise.engine import embeddings, openai, responses
from tierwise.engine.faults import FaultError, Faults
from tierwise.engine.metrics import EngineMetrics
from tierwise.engine.options import Options
from tierwise.engine.ratelimit import RateLimit
from tierwise.engine.requestlog import RequestLog, describe_headers
from tierwise.engine.scheduler import Scheduler, Ticket
from tierwise.sim.profiles import Profile

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024 * 1024
STALL_SECONDS = 3600.0


class Api(enum.Enum):
    """Kinds of requests that generate text."""

    CHAT = "chat completion"
    COMPLETION = "completion"
    RESPONSE = "response"


class Server:
    """One simulated engine or provider. Build it inside the event loop that runs it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.faults = options.faults
        self._to_fail = options.faults.fail_next
        kv_tokens = options.profile.params.kv_tokens if isinstance(options.profile, Profile) else 0
        self.metrics = EngineMetrics(options.served_names[0], options.profile.name, options.max_model_len, kv_tokens)
        self.scheduler = Scheduler(options, self.metrics)
        self.scheduler.apply(options.faults)
        self.log = RequestLog(options.request_log, os.environ.get("HOSTNAME") or socket.gethostname())
        self.received = 0
        self.active = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._loop = asyncio.get_running_loop()
        self._ready_at = self._loop.time() + options.startup_seconds
        self._draining_since: float | None = None
        self._random = random.Random(f"faults:{options.seed}")  # noqa: S311 - reproducible faults, not a secret
        self._rate_limit = RateLimit(options.rate_limit_rpm, self._loop.time())

    # Life -----------------------------------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether the simulated weights are loaded."""
        return self._loop.time() >= self._ready_at

    @property
    def draining(self) -> bool:
        """Whether the process has been asked to end."""
        return self._draining_since is not None

    def drain(self) -> None:
        """Turn `/health` to 503; running requests finish, new ones are served for a short while, then refused."""
        if self._draining_since is None:
            self._draining_since = self._loop.time()
            logger.info("draining: %d requests run on", self.active)

    def application(self) -> web.Application:
        """The application for clients."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        base = self.options.base_path.rstrip("/")
        app.router.add_post(f"{base}/chat/completions", self._chat)
        app.router.add_post(f"{base}/completions", self._completion)
        app.router.add_post(f"{base}/responses", self._response)
        app.router.add_post(f"{base}/embeddings", self._embeddings)
        app.router.add_get(f"{base}/models", self._models)
        app.router.add_get(f"{base}/models/{{model:.+}}", self._model)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ping", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        app.on_response_prepare.append(_mark)
        return app

    def admin_application(self) -> web.Application:
        """The application for whoever plants faults and counts requests: on its own port."""
        app = web.Application()
        app.router.add_get("/faults", self._get_faults)
        app.router.add_put("/faults", self._put_faults)
        app.router.add_get("/stats", self._stats)
        app.on_response_prepare.append(_mark)
        return app

    # Small routes ---------------------------------------------------------------------------------------------------

    async def _health(self, _: web.Request) -> web.Response:
        if not self.started or self.draining or self.faults.unhealthy:
            why = "draining" if self.draining else "loading the simulated model" if not self.started else "fault"
            return web.Response(status=503, text=why)
        return web.Response(status=200)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": f"tierwise-simulator {__version__}", "simulator": True})

    async def _metrics(self, _: web.Request) -> web.Response:
        self.scheduler.refresh_gauges()
        body = generate_latest(self.metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        try:
            if error := self._unauthorised(request):
                raise error
            self._check_model(name)
        except openai.RequestError as error:
            return web.Response(status=error.status, body=error.body(), content_type="application/json")
        return web.json_response(self._card(name))

    async def _models(self, request: web.Request) -> web.Response:
        error = self._unauthorised(request)
        if error is not None:
            return web.Response(status=error.status, body=error.body(), content_type="application/json")
        data = [self._card(name) for name in self.options.served_names]
        return web.json_response({"object": "list", "data": data})

    def _card(self, name: str) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": openai.FINGERPRINT,
            "root": self.options.model,
            "parent": None,
            "max_model_len": self.options.max_model_len,
        }

    async def _get_faults(self, _: web.Request) -> web.Response:
        return web.json_response(self.faults.as_dict())

    async def _put_faults(self, request: web.Request) -> web.Response:
        try:
            values = await request.json()
            # A PUT replaces: what is not named is off.
            self.faults = Faults().changed(values)
            self._to_fail = self.faults.fail_next
        except (FaultError, ValueError, AttributeError) as error:
            return web.json_response({"error": str(error)}, status=400)
        self.scheduler.apply(self.faults)
        logger.warning("faults are now %s", self.faults)
        return web.json_response(self.faults.as_dict())

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"received": self.received, "active": self.active, "outcomes": dict(sorted(self.log.counts.items()))}
        )

    # Generation -----------------------------------------------------------------------------------------------------

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, Api.CHAT)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, Api.COMPLETION)

    async def _response(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, Api.RESPONSE)

    async def _serve(self, request: web.Request, api: Api) -> web.StreamResponse:
        self.received += 1
        self.active += 1
        self.idle.clear()
        try:
            return await self._answer(request, api)
        finally:
            self.active -= 1
            if not self.active:
                self.idle.set()

    async def _answer(self, request: web.Request, api: Api) -> web.StreamResponse:
        request_id, facts = _facts(request)
        try:
            self._refuse(request)
            body = await request.read()
            generation = openai.parse(
                responses.as_chat(body) if api is Api.RESPONSE else body,
                request.headers,
                chat=api is not Api.COMPLETION,
                max_model_len=self.options.max_model_len,
                seed=self.options.seed,
            )
            facts["model"] = generation.model
            self._check_model(generation.model)
        except openai.RequestError as error:
            return self._failed(error, facts)
        if self.faults.reset_rate and self._random.random() < self.faults.reset_rate:
            self.log.write("failed", status=0, why="fault: connection reset", **facts)
            _cut(request)
            raise asyncio.CancelledError
        make = responses.Responder if api is Api.RESPONSE else openai.Responder
        responder = make(
            generation,
            request_id,
            generation.model,
            int(time.time()),
            self.options.tokens_per_chunk,
        )
        ticket = self.scheduler.submit(generation.prompt_tokens, generation.output_tokens, streaming=generation.stream)
        ended = "aborted"
        try:
            if generation.stream:
                response: web.StreamResponse = await self._stream(request, ticket, responder)
            else:
                while self.scheduler.emitted(ticket) < generation.output_tokens:
                    await ticket.wait()
                response = web.Response(body=responder.whole(), content_type="application/json")
            ended = "finished"
            self.metrics.success[generation.finish_reason].inc()
        except ConnectionResetError as error:
            if isinstance(error, _StreamCutError):
                facts["why"] = "fault: stream cut"  # whoever counts broken streams must know who broke them
            # Else the client went away between two writes. There is nobody to answer.
            raise asyncio.CancelledError from None
        finally:
            self._record(ended, ticket, facts, generation)
            self.scheduler.release(ticket)
        if self.draining:
            response.force_close()
        return response

    async def _embeddings(self, request: web.Request) -> web.Response:
        """Answered at once: how long embeddings take is not modelled."""
        self.received += 1
        _, facts = _facts(request)
        try:
            self._refuse(request)
            wanted = embeddings.parse(await request.read())
            facts["model"] = wanted.model
            self._check_model(wanted.model)
        except openai.RequestError as error:
            return self._failed(error, facts)
        self.log.write("finished", status=200, stream=False, prompt_tokens=wanted.prompt_tokens, **facts)
        return web.Response(body=wanted.body(), content_type="application/json")

    def _failed(self, error: openai.RequestError, facts: dict[str, object]) -> web.Response:
        outcome = "failed" if error.status >= 500 else "rejected"
        self.log.write(outcome, status=error.status, why=str(error), **facts)
        headers = {} if error.retry_after is None else {"Retry-After": f"{math.ceil(error.retry_after)}"}
        return web.Response(status=error.status, body=error.body(), content_type="application/json", headers=headers)

    async def _stream(
        self, request: web.Request, ticket: Ticket, responder: openai.Responder | responses.Responder
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )
        if self.draining:
            response.force_close()
        await response.prepare(request)
        total = ticket.sequence.output_tokens
        chunk = self.options.tokens_per_chunk
        while ticket.sent < total:
            out = self.scheduler.emitted(ticket)
            if ticket.sent and out < total:
                out -= (out - ticket.sent) % chunk
            if out <= ticket.sent:
                await ticket.wait()
                continue
            await self._stream_faults(request, out)
            await response.write(responder.events(ticket.sent, out))
            ticket.sent = out
        await response.write_eof()
        return response

    async def _stream_faults(self, request: web.Request, tokens: int) -> None:
        if 0 < self.faults.cut_after_tokens < tokens:
            _cut(request)
            raise _StreamCutError
        if 0 < self.faults.stall_after_tokens < tokens:
            await asyncio.sleep(STALL_SECONDS)

    def _record(self, outcome: str, ticket: Ticket, facts: dict[str, object], generation: openai.Generation) -> None:
        sequence = ticket.sequence
        gap = sequence.inter_token_seconds
        self.log.write(
            outcome,
            status=200,
            stream=generation.stream,
            prompt_tokens=generation.prompt_tokens,
            completion_tokens=self.scheduler.emitted(ticket),
            finish_reason=generation.finish_reason if outcome == "finished" else None,
            ttft_ms=None if sequence.ttft_seconds is None else round(sequence.ttft_seconds * 1e3, 3),
            inter_token_ms=None if gap is None else round(gap * 1e3, 3),
            duration_ms=round((self.scheduler.now() - sequence.arrival_seconds) * 1e3, 3),
            **facts,
        )

    # Refusals -------------------------------------------------------------------------------------------------------

    def _refuse(self, request: web.Request) -> None:
        error = self._unauthorised(request)
        if error is not None:
            raise error
        if not self.started:
            raise openai.RequestError(503, "the simulated model is loading", "ServiceUnavailable")
        since = self._draining_since
        if since is not None and self._loop.time() - since > self.options.drain_accept_seconds:
            raise openai.RequestError(503, "this replica is shutting down", "ServiceUnavailable")
        faults = self.faults
        if faults.outage or self._to_fail or (faults.error_rate and self._random.random() < faults.error_rate):
            self._to_fail = max(0, self._to_fail - 1)
            message = "fault planted in the simulator"
            wait = faults.retry_after or None
            raise openai.RequestError(faults.status, message, "InternalServerError", retry_after=wait)
        wait = self._rate_limit.wait_seconds(self._loop.time())
        if wait:
            message = f"Rate limit reached: {self.options.rate_limit_rpm:g} requests per minute."
            raise openai.RequestError(429, message, "requests", code="rate_limit_exceeded", retry_after=wait)

    def _check_model(self, model: str) -> None:
        if model not in self.options.served_names:
            raise openai.RequestError(404, f"The model `{model}` does not exist.", "NotFoundError", param="model")

    def _unauthorised(self, request: web.Request) -> openai.RequestError | None:
        if not self.options.api_keys:
            return None
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and key.strip() in self.options.api_keys:
            return None
        if self.options.is_provider:
            return openai.RequestError(
                401, "Incorrect API key provided.", "invalid_request_error", code="invalid_api_key"
            )
        return openai.RequestError(401, "Unauthorized", "AuthenticationError")


class _StreamCutError(ConnectionResetError):
    """A stream that this server itself has cut, as it was told to."""


async def _mark(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["x-tierwise-simulator"] = "true"


def _facts(request: web.Request) -> tuple[str, dict[str, object]]:
    """The request's id, and what the log says of each request."""
    request_id = request.headers.get("X-Request-Id") or uuid.uuid4().hex
    return request_id, {
        "request_id": request_id,
        "method": request.method,
        "path": request.path_qs,
        **describe_headers(request.headers),
    }


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


@contextlib.asynccontextmanager
async def running(options: Options) -> AsyncIterator[tuple[Server, int, int | None]]:
    """A server that listens: (server, port, admin port). Closing cuts what still runs: `drain` before it."""
    server = Server(options)
    tls = None
    if options.tls_certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(options.tls_certificate, options.tls_key)
    runners = []
    ports: list[int] = []
    try:
        for app, port, context in (
            (server.application(), options.port, tls),
            (server.admin_application(), options.admin_port, None),
        ):
            if port is None:
                continue
            # A client that goes away must free its place in the batch: aiohttp cancels its handler.
            runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
            await runner.setup()
            runners.append(runner)
            await web.TCPSite(runner, options.host, port, ssl_context=context, backlog=512).start()
            ports.append(runner.addresses[0][1])
        yield server, ports[0], ports[1] if len(ports) > 1 else None
    finally:
        for runner in runners:
            await runner.cleanup()
        server.scheduler.close()
        server.log.close()
