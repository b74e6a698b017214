"""Providers' credentials as SDS secrets: in memory and on the mTLS channel only, never in a ConfigMap or a log."""

from tierwise.api.model_tier import ModelTier
from tierwise.core.world import Key, World
from tierwise.render.envoy.bundle import Resource
from tierwise.render.envoy.protos import SECRET


def credential_value(world: World, key: Key, tier: ModelTier) -> str | None:
    """The credential of an external tier; None when its Secret or key is missing, empty or no header value.

    A trailing line break, as `kubectl create secret --from-file` leaves it, is not part of the credential.
    """
    ref = tier.spec.external.credentials_ref if tier.spec.external is not None else None
    if ref is None:
        return None
    secret = world.secrets.get(Key(key.namespace, ref.name))
    raw = secret.data.get(ref.key) if secret is not None else None
    try:
        text = raw.decode("ascii").rstrip("\r\n") if raw is not None else ""
    except UnicodeDecodeError:
        return None
    return text if text and text.isprintable() else None


def secret(name: str, value: str) -> Resource:
    """The SDS resource."""
    return {"@type": SECRET, "name": name, "generic_secret": {"secret": {"inline_string": value}}}
