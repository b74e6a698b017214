"""Envoy's messages without generated code: descriptors of its v3 API, strict JSON to protobuf, and content versions.

Envoy accepts unknown fields of dynamic configuration silently, so every resource is checked here before it is sent.
`envoy-1.40.binpb.gz` is a `FileDescriptorSet` dumped from go-control-plane v1.40.0 (Apache-2.0, see NOTICE).
"""

import gzip
import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from google.protobuf import descriptor, descriptor_pb2, descriptor_pool, json_format, message, message_factory

from tierwise.core.digest import digest
from tierwise.errors import TierwiseError
from tierwise.render.envoy.bundle import Resource

TYPE_PREFIX = "type.googleapis.com/"
CLUSTER = TYPE_PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINTS = TYPE_PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = TYPE_PREFIX + "envoy.config.listener.v3.Listener"
ROUTES = TYPE_PREFIX + "envoy.config.route.v3.RouteConfiguration"
SCOPE = TYPE_PREFIX + "envoy.config.route.v3.ScopedRouteConfiguration"
EXTENSION = TYPE_PREFIX + "envoy.config.core.v3.TypedExtensionConfig"
RUNTIME = TYPE_PREFIX + "envoy.service.runtime.v3.Runtime"
SECRET = TYPE_PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"

_DESCRIPTORS = "envoy-1.40.binpb.gz"


class InvalidResource(TierwiseError):  # noqa: N818 - reads as the state it reports, as InvalidObject does
    """A rendered resource is not what Envoy's API defines: an unknown field, a wrong type, an unknown message."""

    def __init__(self, type_url: str, name: str, reason: str) -> None:
        super().__init__(f"{type_url.rsplit('.', 1)[-1]} {name or '(unnamed)'}: {reason}")
        self.type_url = type_url
        self.name = name
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Encoded:
    """One resource, ready to send.

    Attributes:
        type_url, name: of the resource.
        data: the serialised message.
        version: hash of the content: equal content has an equal version on every operator replica. Not of `data`:
            messages within messages may be serialised in another order by another process.
    """

    type_url: str
    name: str
    data: bytes
    version: str


@lru_cache(maxsize=1)
def _pool() -> descriptor_pool.DescriptorPool:
    packed = resources.files("tierwise.render.envoy").joinpath(_DESCRIPTORS).read_bytes()
    files = descriptor_pb2.FileDescriptorSet.FromString(gzip.decompress(packed))
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@lru_cache(maxsize=64)
def message_class(full_name: str) -> type[message.Message]:
    """The class of a message of Envoy's API, such as `envoy.config.cluster.v3.Cluster`.

    Raises:
        KeyError: Envoy 1.40 has no such message.
    """
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(full_name))


@lru_cache(maxsize=8)
def extension_of(full_name: str) -> descriptor.FieldDescriptor:
    """An extension of Envoy's API, such as an annotation of its fields.

    Raises:
        KeyError: Envoy 1.40 has no such extension.
    """
    return _pool().FindExtensionByName(full_name)


def name_of(resource: Resource) -> str:
    """Name of a resource; endpoints carry their cluster's."""
    return str(resource.get("name") or resource.get("cluster_name") or "")


def canonical(resource: object) -> str:
    """One text for equal content: sorted keys, no spaces."""
    return json.dumps(resource, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_hash(*parts: object) -> str:
    """Digest of the parts' canonical JSON."""
    return digest(b"".join(canonical(part).encode() + b"\0" for part in parts))


def encode(resource: Resource) -> Encoded:
    """Check a resource against Envoy's API and serialise it.

    Raises:
        InvalidResource: unknown field, wrong type, or unknown message type.
    """
    return _encode(canonical(resource))


@lru_cache(maxsize=16_384)
def _encode(text: str) -> Encoded:
    # A change touches few resources: all others of a large configuration come from the cache.
    resource = json.loads(text)
    data = parse(resource).SerializeToString(deterministic=True)
    return Encoded(str(resource.get("@type", "")), name_of(resource), data, digest(text.encode()))


def parse(resource: Resource) -> message.Message:
    """The protobuf message of a resource given as JSON with `@type`.

    Raises:
        InvalidResource: unknown field, wrong type, or unknown message type.
    """
    fields: dict[str, Any] = dict(resource)
    type_url = str(fields.pop("@type", ""))
    name = name_of(resource)
    try:
        parsed = message_class(type_url.removeprefix(TYPE_PREFIX))()
    except KeyError:
        raise InvalidResource(type_url, name, f"Envoy 1.40 has no message {type_url!r}") from None
    try:
        json_format.ParseDict(fields, parsed, descriptor_pool=_pool())
    except (json_format.ParseError, KeyError, TypeError, ValueError) as error:
        raise InvalidResource(type_url, name, str(error)) from error
    return parsed


def to_json(parsed: message.Message) -> dict[str, Any]:
    """A message as protobuf JSON, field names as in the .proto files."""
    shown: dict[str, Any] = json_format.MessageToDict(parsed, preserving_proto_field_name=True, descriptor_pool=_pool())
    return shown
