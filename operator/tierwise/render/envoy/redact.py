"""Envoy resources without their secrets: for people, files and reports. There is no way to switch it off.

Three rules, each of which is enough: a field that Envoy's API marks as sensitive (`udpa.annotations.sensitive`); one
that it should mark and does not (`UNMARKED`, and headers that carry credentials); any text with a Secret's value in it.
They know nothing of where a resource comes from: resources of kinds that come later are held to the same rules.
"""

import functools
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import descriptor, message, message_factory

from tierwise.render.envoy.protos import TYPE_PREFIX, extension_of, message_class
from tierwise.render.envoy.upstream import CREDENTIAL_HEADERS

PLACEHOLDER = "REDACTED"

UNMARKED = frozenset(
    {
        "envoy.extensions.filters.http.api_key_auth.v3.Credential.key",
        "envoy.extensions.filters.http.aws_lambda.v3.Credentials.secret_access_key",
        "envoy.extensions.filters.http.aws_lambda.v3.Credentials.session_token",
        "envoy.extensions.filters.http.basic_auth.v3.BasicAuth.users",
        "envoy.extensions.grpc_service.call_credentials.access_token.v3.AccessTokenCredentials.token",
        "envoy.extensions.grpc_service.call_credentials.google_refresh_token.v3.GoogleRefreshTokenCredentials.token",
        "envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials.access_token",
        "envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials.google_refresh_token",
        "envoy.config.trace.v3.LightstepConfig.access_token",
    }
)
"""Fields that hold secrets in the clear and that Envoy's authors have not marked."""

KNOWN_WITHIN = frozenset({"envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth.credentials"})
"""Marked fields of which only what is named in `UNMARKED` is secret: whose key it is may be seen."""

_HEADER = "envoy.config.core.v3.HeaderValue"
_ANY = "google.protobuf.Any"
_MIN_VALUE = 4
"""Characters of a Secret's value that is looked for: shorter ones would hide half of any text."""


@dataclass(slots=True)
class Redactor:
    """Takes secrets out of messages.

    Attributes:
        values: of Secrets that are known, at least four characters each, wherever they may stand.
    """

    values: frozenset[str] = field(default=frozenset(), repr=False)
    _numbers: MutableMapping[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.values = frozenset(value for value in self.values if len(value) >= _MIN_VALUE)

    def __call__(self, resource: message.Message) -> message.Message:
        """A copy without secrets. Equal values get equal placeholders within a resource, others different ones."""
        self._numbers = {}
        copied = type(resource)()
        copied.CopyFrom(resource)
        self._walk(copied, whole=False)
        return copied

    def _walk(self, found: message.Message, *, whole: bool) -> None:
        kind = found.DESCRIPTOR.full_name
        if kind == _ANY:
            self._any(found, whole=whole)
            return
        header = kind == _HEADER and str(getattr(found, "key", "")).lower() in CREDENTIAL_HEADERS
        for each, value in found.ListFields():
            secret = whole or sensitive(each) or (header and each.name in {"value", "raw_value"})
            self._field(found, each, value, secret=secret)

    def _field(self, found: message.Message, each: descriptor.FieldDescriptor, value: Any, *, secret: bool) -> None:  # noqa: ANN401 - of any field
        of = each.message_type
        if of is not None and of.GetOptions().map_entry:
            inner = of.fields_by_name["value"]
            for key in list(value):
                if inner.message_type is not None:
                    self._walk(value[key], whole=secret)
                elif inner.cpp_type == descriptor.FieldDescriptor.CPPTYPE_STRING:
                    value[key] = self._text(value[key], secret=secret)
        elif of is not None:
            for one in value if each.is_repeated else (value,):
                self._walk(one, whole=secret)
        elif each.cpp_type == descriptor.FieldDescriptor.CPPTYPE_STRING:
            if each.is_repeated:
                value[:] = [self._text(one, secret=secret) for one in value]
            else:
                setattr(found, each.name, self._text(value, secret=secret))

    def _any(self, found: Any, *, whole: bool) -> None:  # noqa: ANN401 - a google.protobuf.Any of our own pool
        inner = message_class(found.type_url.removeprefix(TYPE_PREFIX)).FromString(found.value)
        self._walk(inner, whole=whole)
        found.value = inner.SerializeToString(deterministic=True)

    def _text(self, text: str | bytes, *, secret: bool) -> Any:  # noqa: ANN401 - as it came
        if isinstance(text, bytes):
            return self._text(text.decode("latin-1"), secret=secret).encode("latin-1")
        if secret:
            return self._placeholder(text)
        for value in sorted((value for value in self.values if value in text), key=lambda value: (-len(value), value)):
            text = text.replace(value, self._placeholder(value))
        return text

    def _placeholder(self, value: str) -> str:
        return f"{PLACEHOLDER}-{self._numbers.setdefault(value, len(self._numbers) + 1)}"


@functools.cache
def sensitive(each: descriptor.FieldDescriptor) -> bool:
    """Whether a field holds a secret, whatever stands in it."""
    return each.full_name in UNMARKED or (_marked(each) and each.full_name not in KNOWN_WITHIN)


def _marked(each: descriptor.FieldDescriptor) -> bool:
    annotation: Any = extension_of("udpa.annotations.sensitive")
    options: Any = message_factory.GetMessageClass(annotation.containing_type)
    # The field's own options know nothing of extensions of our pool: read them again as what they are.
    return bool(options.FromString(each.GetOptions().SerializeToString()).Extensions[annotation])
