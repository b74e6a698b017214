"""What nobody is shown, whatever kind of resource it stands in."""

import base64
import json

import pytest
from envoy_lab import external, in_cluster, policy, world
from google.protobuf import message_factory

from tierwise.render.envoy import bootstrap, gateway, protos, redact, static
from tierwise.render.envoy.options import GatewayOptions
from tierwise.render.envoy.protos import TYPE_PREFIX, parse, to_json

TLS = TYPE_PREFIX + "envoy.extensions.transport_sockets.tls.v3"
PLANTED = "sk-planted-3f9c"


def shown(resource, values=()):
    return json.dumps(to_json(redact.Redactor(frozenset(values))(parse(resource))))


@pytest.mark.parametrize(
    "secret",
    [
        {"generic_secret": {"secret": {"inline_string": PLANTED}}},
        {"generic_secret": {"secret": {"inline_bytes": base64.b64encode(PLANTED.encode()).decode()}}},
        {"generic_secret": {"secrets": {"a": {"inline_string": PLANTED}}}},
        {"tls_certificate": {"private_key": {"inline_string": PLANTED}, "password": {"inline_string": PLANTED}}},
        {"session_ticket_keys": {"keys": [{"inline_string": PLANTED}]}},
    ],
)
def test_what_envoy_marks_is_redacted_wherever_it_stands(secret):
    """No value is told to the redactor: the annotation alone has to be enough."""
    found = shown({"@type": f"{TLS}.Secret", "name": "s", **secret})
    assert PLANTED not in found
    assert base64.b64encode(PLANTED.encode()).decode() not in found
    assert '"s"' in found


def test_a_mark_within_any_number_of_wrappings_counts():
    """An extension in an extension, as ECDS brings it, with a key that no annotation protects and one that does."""
    keys = {
        "@type": f"{TYPE_PREFIX}envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth",
        "credentials": [{"key": key, "client": "legal/bot"} for key in (PLANTED, "other-key-1", PLANTED)],
    }
    resource = {
        "@type": f"{TYPE_PREFIX}envoy.config.core.v3.TypedExtensionConfig",
        "name": "keys",
        "typed_config": {
            "@type": f"{TYPE_PREFIX}envoy.extensions.common.matching.v3.ExtensionWithMatcher",
            "extension_config": {"name": "keys", "typed_config": keys},
        },
    }
    found = to_json(redact.Redactor()(parse(resource)))
    credentials = found["typed_config"]["extension_config"]["typed_config"]["credentials"]
    # Equal ones stay equal: Envoy's check for keys that stand twice still means something.
    assert [each["key"] for each in credentials] == ["REDACTED-1", "REDACTED-2", "REDACTED-1"]
    assert {each["client"] for each in credentials} == {"legal/bot"}


def test_every_marked_field_of_the_api_is_found():
    """28 of them in Envoy 1.40; none is found when annotations are lost on the way, as with other descriptors."""
    annotation = protos.extension_of("udpa.annotations.sensitive")
    assert annotation.number == 76569463
    marked = [
        "envoy.extensions.transport_sockets.tls.v3.GenericSecret.secret",
        "envoy.extensions.transport_sockets.tls.v3.TlsCertificate.private_key",
        "envoy.extensions.filters.http.basic_auth.v3.BasicAuth.users",
    ]
    for full_name in [*marked, *redact.UNMARKED]:
        of, _, name = full_name.rpartition(".")
        assert redact.sensitive(protos.message_class(of).DESCRIPTOR.fields_by_name[name]), full_name
    public = protos.message_class("envoy.extensions.transport_sockets.tls.v3.TlsCertificate").DESCRIPTOR
    assert not redact.sensitive(public.fields_by_name["certificate_chain"])
    assert message_factory.GetMessageClass(public)


def test_headers_that_carry_credentials_are_redacted():
    provider = external("https://p.example/v1", headers=[{"name": "x-api-key", "value": PLANTED}])
    clusters = gateway.render(world([provider], [])).namespaces["legal"].clusters
    assert PLANTED in json.dumps(clusters)
    assert not any(PLANTED in shown(cluster) for cluster in clusters.values())


def test_a_secrets_value_is_found_in_any_text():
    """Where no rule of fields helps: in a Lua program, a struct, a name."""
    lua = {
        "@type": f"{TYPE_PREFIX}envoy.extensions.filters.http.lua.v3.Lua",
        "default_source_code": {"inline_string": f"-- {PLANTED}!"},
        "filter_context": {"deep": [{"er": f"x{PLANTED}"}]},
    }
    assert shown(lua).count(PLANTED) == 2
    found = shown(lua, {PLANTED, "abc"})
    assert PLANTED not in found
    assert "-- REDACTED-1!" in found
    assert "xREDACTED-1" in found


def test_what_is_no_secret_stays_as_it_is():
    tiers = [in_cluster(), external("https://p.example/v1", credentialsRef={"name": "k"})]
    config = gateway.render(world(tiers, [policy()], {"legal/compact": [1]}, {"legal/k": {"token": PLANTED}}))
    bundle = config.namespaces["legal"]
    for resource in (*bundle.clusters.values(), *bundle.endpoints.values(), bundle.routes, *bundle.scopes.values()):
        redacted = redact.Redactor(frozenset({PLANTED}))(parse(resource))
        assert to_json(redacted) == to_json(parse(resource))
    assert "REDACTED" in shown(bundle.secrets["legal/frontier"])


def test_the_static_form_leaves_nothing_to_fetch():
    tiers = [in_cluster(), external("https://p.example/v1", credentialsRef={"name": "k"})]
    config = gateway.render(world(tiers, [policy()], {"legal/compact": [1]}, {"legal/k": {"token": PLANTED}}))
    bundle = config.namespaces["legal"]
    resources = {
        **config.shared,
        protos.CLUSTER: {**config.shared.get(protos.CLUSTER, {}), **bundle.clusters},
        protos.ENDPOINTS: bundle.endpoints,
        protos.SECRET: bundle.secrets,
        protos.SCOPE: {**config.shared[protos.SCOPE], **bundle.scopes},
        protos.ROUTES: {**config.shared[protos.ROUTES], "legal": bundle.routes},
    }
    options = bootstrap.BootstrapOptions(xds_host="127.0.0.1", xds_dns=False, certificates=None)
    found = static.bootstrap(
        bootstrap.bootstrap(options), resources, {GatewayOptions().system_ca_path: "/somewhere/else"}
    )
    text = json.dumps(found)
    assert '"ads"' not in text
    assert GatewayOptions().system_ca_path not in text
    assert "/somewhere/else" in text
    parse({"@type": f"{TYPE_PREFIX}envoy.config.bootstrap.v3.Bootstrap", **found})
    listener = next(each for each in found["static_resources"]["listeners"] if each["name"] == "tierwise")
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    scopes = manager["scoped_routes"]["scoped_route_configurations_list"]["scoped_route_configurations"]
    assert {each["route_configuration"]["name"] for each in scopes} == {"legal", "tierwise/default"}
