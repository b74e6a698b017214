"""The manifests of docs/providers.md: as in `examples/providers`, valid, and requests that reach what they name."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from envoy_lab import policy, world

from tierwise.api.model_tier import ModelTier
from tierwise.render.envoy import gateway

ROOT = Path(__file__).parents[2]
PRESETS = {path.stem: path.read_text() for path in sorted((ROOT / "examples" / "providers").glob("*.yaml"))}
ASKED = {
    "openai": ("api.openai.com", "/v1"),
    "azure-openai": ("my-resource.openai.azure.com", "/openai/v1"),
    "anthropic": ("api.anthropic.com", "/v1"),
    "gemini": ("generativelanguage.googleapis.com", "/v1beta/openai"),
    "mistral": ("api.mistral.ai", "/v1"),
    "together": ("api.together.ai", "/v1"),
    "groq": ("api.groq.com", "/openai/v1"),
    "openrouter": ("openrouter.ai", "/api/v1"),
    "deepseek": ("api.deepseek.com", "/v1"),
    "self-hosted": ("vllm.models.example.com", "/v1"),
}


def of(name, **external):
    """The tier of a preset, in our namespace, with some of its external part replaced; and the Secret's data."""
    secret, tier = yaml.safe_load_all(PRESETS[name])
    tier["metadata"] |= {"namespace": "legal", "uid": f"uid-{name}"}
    tier["spec"]["external"] |= external
    tier["spec"]["external"] = {key: value for key, value in tier["spec"]["external"].items() if value is not None}
    return ModelTier.parse(tier), {f"legal/{secret['metadata']['name']}": secret["stringData"]}


def one_class(name):
    return policy(classes=[{"name": "all", "tiers": [{"name": name}], "fallback": {"attempts": 1}}])


def test_the_document_shows_the_files_and_all_of_them():
    text = (ROOT / "docs" / "providers.md").read_text()
    shown = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "kind: ModelTier" in block]
    assert sorted(shown) == sorted(PRESETS.values())
    assert PRESETS.keys() == ASKED.keys()
    for name, (host, base) in ASKED.items():
        assert name == "self-hosted" or f"`https://{host}{base}`".replace("my-resource", "RESOURCE") in text


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_leads_to_its_provider_over_verified_tls(name):
    tier, secrets = of(name)
    config = gateway.render(world([tier], [one_class(name)], secrets=secrets))
    assert config.invalid == {}
    cluster = config.namespaces["legal"].clusters[f"legal/{name}@provider"]
    host, _ = ASKED[name]
    endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    assert endpoint["address"]["socket_address"]["address"] == host
    context = cluster["transport_socket"]["typed_config"]
    validation = context["common_tls_context"]["validation_context"]
    assert context["sni"] == host
    assert [one["matcher"]["exact"] for one in validation["match_typed_subject_alt_names"]] == [host]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", sorted(PRESETS))
async def test_a_request_reaches_the_provider_as_it_expects_it(lab, upstream, name):
    x = await upstream(name)
    url = f"http://localhost:{x.port}{urlsplit(of(name)[0].spec.external.url).path}"
    tier, secrets = of(name, url=url, allowPlaintext=True, caBundle=None)
    await lab.settle(world([tier], [one_class(name)], secrets=secrets))
    assert (await lab.ask(headers={"authorization": "Bearer sk-client"})).by == name
    (seen,) = x.seen
    assert (seen.path, seen.json["model"]) == (f"{ASKED[name][1]}/chat/completions", tier.spec.model)
    if name == "azure-openai":
        assert (seen.headers["api-key"], "authorization" in seen.headers) == ("replace-me", False)
    else:
        assert seen.headers["authorization"] == "Bearer replace-me"
    if name == "openrouter":
        assert seen.headers["http-referer"] == "https://llm.example.com"
