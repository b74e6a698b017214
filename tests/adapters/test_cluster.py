"""The API server's adapter against a small HTTP server: what is sent, what errors become, and that nothing hangs."""

import asyncio
import json
import time

import pytest
from aiohttp import web
from kubernetes.aio import client as kube

from tierwise.adapters import cluster as adapter
from tierwise.adapters import kinds
from tierwise.adapters.cluster import ConflictError, ForbiddenError, InvalidError, NotConnectedError, UnavailableError

MANIFEST = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"namespace": "team-a", "name": "compact"},
    "spec": {},
}


class Server:
    """Answers with what `answers` gives next, and keeps what was asked."""

    def __init__(self):
        self.asked = []
        self.answers = []

    async def handle(self, request):
        body = await request.read()
        self.asked.append((request.method, request.path, dict(request.query), request.content_type, body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            return await answer(request)
        status, content = answer
        return web.json_response(content, status=status)


@pytest.fixture
async def server():
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest.fixture
async def cluster(server, monkeypatch):
    monkeypatch.setattr(adapter, "RETRY_DELAYS_SECONDS", (0.0, 0.0, 0.0))
    configuration = kube.Configuration(host=server.url)
    async with adapter.connect(configuration, timeout_seconds=0.5) as found:
        yield found


def refusal(code, message):
    return code, {"kind": "Status", "code": code, "message": message}


async def test_apply_is_server_side_forced_and_named(cluster, server):
    server.answers = [(200, MANIFEST)]
    assert await cluster.apply(MANIFEST) == MANIFEST
    await cluster.apply_status(MANIFEST | {"status": {}}, manager="tierwise-gateway-op-0")
    (method, path, query, content_type, body), (_, status_path, status_query, *_) = server.asked
    assert (method, path) == ("PATCH", "/apis/apps/v1/namespaces/team-a/deployments/compact")
    assert query == {"fieldManager": "tierwise", "force": "true"}
    assert content_type == "application/apply-patch+yaml"
    assert json.loads(body) == MANIFEST
    assert status_path.endswith("/compact/status")
    assert status_query["fieldManager"] == "tierwise-gateway-op-0"


async def test_a_list_is_read_in_pages_and_its_items_are_whole(cluster, server):
    def page(name, token):
        return 200, {"metadata": {"continue": token, "resourceVersion": "7"}, "items": [{"metadata": {"name": name}}]}

    server.answers = [page("a", "next"), page("b", "")]
    listing = await cluster.list(kinds.MODEL_TIER, label_selector="a=b")
    assert [item["metadata"]["name"] for item in listing.items] == ["a", "b"]
    assert {item["kind"] for item in listing.items} == {"ModelTier"}
    assert listing.resource_version == "7"
    assert [query.get("continue") for _, _, query, *_ in server.asked] == [None, "next"]
    assert server.asked[0][2]["labelSelector"] == "a=b"


async def test_a_deletion_names_the_uid_and_what_is_gone_is_fine(cluster, server):
    server.answers = [(200, {}), refusal(404, "gone"), refusal(409, "another uid")]
    await cluster.delete(kinds.DEPLOYMENT, "team-a", "compact", uid="u-1")
    await cluster.delete(kinds.DEPLOYMENT, "team-a", "compact", uid="u-1")
    with pytest.raises(ConflictError, match="another uid"):
        await cluster.delete(kinds.DEPLOYMENT, "team-a", "compact", uid="u-1")
    assert json.loads(server.asked[0][4])["preconditions"] == {"uid": "u-1"}


async def test_replicas_are_set_through_scale_by_a_manager_of_their_own(cluster, server):
    server.answers = [(200, {})]
    await cluster.scale(kinds.DEPLOYMENT, "team-a", "compact", 1, uid="u-1")
    method, path, query, _, body = server.asked[0]
    assert (method, path) == ("PATCH", "/apis/apps/v1/namespaces/team-a/deployments/compact/scale")
    assert query == {"fieldManager": "tierwise-scale"}
    assert json.loads(body) == {"spec": {"replicas": 1}, "metadata": {"uid": "u-1"}}


@pytest.mark.parametrize(("code", "error"), [(403, ForbiddenError), (409, ConflictError), (422, InvalidError)])
async def test_a_refusal_is_typed_told_in_the_servers_words_and_not_repeated(cluster, server, code, error):
    server.answers = [refusal(code, "because of this")]
    with pytest.raises(error, match="because of this"):
        await cluster.apply(MANIFEST)
    assert len(server.asked) == 1


async def test_trouble_of_the_server_is_tried_again_a_bounded_number_of_times(cluster, server):
    server.answers = [refusal(503, "starting"), refusal(429, "later"), (200, MANIFEST)]
    assert await cluster.apply(MANIFEST) == MANIFEST
    server.asked.clear()
    server.answers = [refusal(500, "broken")]
    with pytest.raises(UnavailableError):
        await cluster.apply(MANIFEST)
    assert len(server.asked) == 4


async def test_silence_is_bounded(cluster, server):
    async def silent(_request):
        await asyncio.sleep(5)

    server.answers = [silent]
    start = time.monotonic()
    with pytest.raises(UnavailableError, match="no answer"):
        await cluster.apply(MANIFEST)
    assert time.monotonic() - start < 3


async def test_an_answer_that_is_no_json_is_trouble_of_the_server(cluster, server):
    async def page(_request):
        return web.Response(text="<html>")

    server.answers = [page]
    with pytest.raises(UnavailableError, match="no JSON"):
        await cluster.get(kinds.SERVICE, "team-a", "compact")


async def test_nobody_there():
    configuration = kube.Configuration(host="http://127.0.0.1:1")
    async with adapter.connect(configuration, timeout_seconds=0.5) as cluster:
        with pytest.raises(UnavailableError):
            await cluster.get(kinds.SERVICE, "team-a", "compact")


async def test_a_manifest_without_a_name_is_refused_before_it_is_sent(cluster, server):
    with pytest.raises(InvalidError):
        await cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": {}})
    assert server.asked == []


async def test_no_kubeconfig_is_a_clear_error(tmp_path):
    with pytest.raises(NotConnectedError, match="no way to reach a cluster"):
        await adapter.configure(tmp_path / "missing")
