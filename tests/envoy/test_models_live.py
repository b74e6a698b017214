"""Which models there are, asked as clients ask: the list, and one by its name."""

import pytest
from envoy_lab import in_cluster, policy, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

ONE = [{"name": "all", "tiers": [{"name": "compact"}]}]


async def get(lab, path, host="localhost", method="GET"):
    url = f"http://127.0.0.1:{lab.options.port}"
    async with lab.http.request(method, lab_url(url, path), headers={"host": host}) as response:
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-request-id"]
        return response.status, await response.json()


def lab_url(url, path):
    from yarl import URL

    return URL(url + path, encoded=True)


async def test_one_model_by_its_name_as_the_caller_knows_it(lab, upstream):
    a = await upstream("a")
    policies = [
        policy(classes=ONE, models=["assistant", "qwen:3.b-1_x"], hostnames=["legal.llm.example"]),
        policy("other", namespace="sales", classes=ONE, models=["seller"], hostnames=["sales.llm.example"]),
    ]
    tiers = [in_cluster(), in_cluster(namespace="sales")]
    await lab.settle(world(tiers, policies, {"legal/compact": [a.port]}))
    created = policies[0].metadata.creation_timestamp
    known = {"object": "model", "created": int(created.timestamp()), "owned_by": "legal"}
    for path, host, name in (
        ("legal/assistant", "localhost", "legal/assistant"),
        ("legal%2Fassistant", "localhost", "legal/assistant"),
        ("legal%2fassistant?x=1", "sales.llm.example", "legal/assistant"),
        ("legal/qwen:3.b-1_x", "10.0.0.1", "legal/qwen:3.b-1_x"),
        ("assistant", "legal.llm.example", "assistant"),
        ("qwen:3.b-1_x", "Legal.llm.example:8443", "qwen:3.b-1_x"),
    ):
        assert await get(lab, f"/v1/models/{path}", host) == (200, {"id": name, **known}), (path, host)
    for path, host, method, code in (
        ("seller", "legal.llm.example", "GET", "model_not_found"),
        ("assistant", "localhost", "GET", "model_not_found"),
        ("legal/nobody", "localhost", "GET", "model_not_found"),
        ("nobody/assistant", "localhost", "GET", "model_not_found"),
        ("legal/assistant/x", "localhost", "GET", "model_not_found"),
        ("x" * 513, "localhost", "GET", "unknown_endpoint"),
        ("a%20b", "localhost", "GET", "unknown_endpoint"),
        ("a%20b", "legal.llm.example", "GET", "unknown_endpoint"),
        ("legal/assistant", "localhost", "DELETE", "unknown_endpoint"),
    ):
        status, answer = await get(lab, f"/v1/models/{path}", host, method)
        assert (status, answer["error"]["code"]) == (404, code), (path, host, method)
    assert not a.seen


async def test_escaped_slashes_lead_nowhere_else(lab, upstream):
    a = await upstream("a")
    await lab.settle(world([in_cluster()], [policy(classes=ONE)], {"legal/compact": [a.port]}))
    assert (await lab.ask(path="/v1/chat%2Fcompletions")).status == 200
    assert [seen.path for seen in a.seen] == ["/v1/chat/completions"], "a tier gets the path that the route matched"
    a.seen.clear()
    for path in (
        "/v1/chat/completions%2F..%2F..%2Fmetrics",
        "/v1/chat/completions/..%2f..%2f..%2fv1%2fload_lora_adapter",
        "/v1/chat%5Ccompletions%5C..%5Cx",
        "/v1/completions%2F",
        "/v1/%2e%2e%2fmetrics",
        "/v1/chat%252Fcompletions",
    ):
        answer = await lab.ask(path=lab_url("", path))
        assert answer.status in {400, 404}, path
    assert not a.seen


async def test_a_list_of_many_models_is_whole(lab):
    """Envoy's own limit of an answer is 4 KiB: about 35 models."""
    models = [f"a-model-with-a-long-name-{number:03}" for number in range(300)]
    rules = [
        policy(f"p{part}", classes=ONE, models=models[part * 30 : part * 30 + 30], hostnames=[f"p{part}.example"])
        for part in range(10)
    ]
    await lab.settle(world([in_cluster()], rules))
    for host, names in (("p3.example", models), ("localhost", [f"legal/{model}" for model in models])):
        status, answer = await get(lab, "/v1/models", host)
        assert (status, [each["id"] for each in answer["data"]]) == (200, names)
