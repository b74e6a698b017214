"""A bundle as the data of a ConfigMap and back: what gateways acknowledged outlives the operator's restart.

Secrets and endpoints are not kept: the first must not be, the second would be stale.
"""

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from typing import Any

from tierwise.core import digest
from tierwise.errors import TierwiseError
from tierwise.render.envoy import gateway
from tierwise.render.envoy.bundle import NamespaceBundle
from tierwise.render.envoy.protos import InvalidResource, canonical

NAME = "tierwise-gateway-last-good"
"""Name of the ConfigMap in each namespace that has policies."""

_FORMAT = "1"
_MAX_BYTES = 64 * 1024 * 1024
"""Largest content that is unpacked: a ConfigMap of 1 MiB could hold far more zeros."""


class UnreadableLastGood(TierwiseError):  # noqa: N818 - reads as the state it reports
    """The data is not what `pack` wrote, or no longer fits Envoy's API."""


def pack(bundle: NamespaceBundle) -> dict[str, str]:
    """Data of the ConfigMap, equal for equal bundles: `format`, `hash`, `bundle` (base64 of zlib of JSON)."""
    content = {"clusters": dict(bundle.clusters), "routes": bundle.routes, "scopes": dict(bundle.scopes)}
    packed = base64.b64encode(zlib.compress(canonical(content).encode(), 9)).decode()
    return {"bundle": packed, "format": _FORMAT, "hash": bundle.hash}


def unpack(namespace: str, data: Mapping[str, Any]) -> NamespaceBundle:
    """The bundle, without endpoints and secrets.

    Raises:
        UnreadableLastGood: another format, damaged data, or resources that Envoy's API does not know.
    """
    if data.get("format") != _FORMAT:
        raise UnreadableLastGood(f"{namespace}: format {data.get('format')!r} is not {_FORMAT!r}")
    try:
        inflate = zlib.decompressobj()
        text = inflate.decompress(base64.b64decode(data["bundle"], validate=True), _MAX_BYTES)
        if not inflate.eof:
            raise UnreadableLastGood(f"{namespace}: content is cut short or larger than {_MAX_BYTES} bytes")
        content = json.loads(text)
        bundle = NamespaceBundle(
            namespace=namespace,
            clusters=content["clusters"],
            endpoints={},
            secrets={},
            routes=content["routes"],
            scopes=content["scopes"],
            hash=gateway.bundle_hash(content["clusters"], content["routes"], content["scopes"]),
        )
        gateway.check(bundle)
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error, zlib.error, InvalidResource) as error:
        raise UnreadableLastGood(f"{namespace}: {error}") from error
    if not digest.same(data.get("hash"), bundle.hash):
        raise UnreadableLastGood(f"{namespace}: content has hash {bundle.hash}, not {data.get('hash')!r}")
    return bundle
