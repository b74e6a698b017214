"""Certificates of the channel between gateways and operator, made by the operator itself and kept in Secrets.

Not by Helm's `genCA`: `helm template` and Argo CD would make new ones at each rendering. Three Secrets in the
operator's own namespace: the authority (only the operator may read it), the server's pair, and the gateways' pair,
which their Pods mount and Envoy reloads when it changes.
"""

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tierwise.adapters.cluster import ConflictError, NotFoundError
from tierwise.errors import TierwiseError

AUTHORITY, SERVER, CLIENT = "tierwise-xds-ca", "tierwise-xds-server", "tierwise-xds-client"
SERVICE = "tierwise-xds"
AUTHORITY_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=90)
# A leaf is renewed when two thirds of its life are over: a month is left to notice that it failed.
RENEW_AT = 2 / 3
# Clocks of nodes differ a little.
BACKDATE = timedelta(minutes=5)
ATTEMPTS = 5


class CertificateError(TierwiseError):
    """A Secret of the gateway channel has no usable certificate, or replicas could not agree on one."""


@dataclass(frozen=True, slots=True)
class Material:
    """A certificate with its key and the authority that gateways or operator check the other side with.

    Attributes:
        ca, certificate, key: PEM.
        not_before, not_after: aware UTC.
    """

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    not_before: datetime
    not_after: datetime


class Secrets(Protocol):
    """What is needed of the API server; `adapters.cluster.Cluster` has it."""

    async def secret(self, namespace: str, name: str) -> dict[str, Any]:
        """One Secret. Raises NotFoundError."""
        ...

    async def create(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Create it. Raises ConflictError when it exists."""
        ...

    async def apply(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Apply it. Raises ConflictError when its resourceVersion is no longer the one given."""
        ...


def issue_authority(now: datetime) -> Material:
    """A new self-signed authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("tierwise-xds-ca")
    certificate = (
        _builder(name, name, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    return Material(pem, pem, _key_pem(key), certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def issue(authority: Material, name: str, dns_names: tuple[str, ...], now: datetime, *, server: bool) -> Material:
    """A pair signed by the authority, for a server (the operator) or a client (a gateway)."""
    authority_key = serialization.load_pem_private_key(authority.key, password=None)
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"the key in Secret {AUTHORITY} is none of ours: delete the Secret to make a new one")
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    key = ec.generate_private_key(ec.SECP256R1())
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    certificate = (
        _builder(_name(name), issuer.subject, key.public_key(), now, LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(dns) for dns in dns_names]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return Material(
        authority.certificate,
        certificate.public_bytes(serialization.Encoding.PEM),
        _key_pem(key),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def needs_renewal(material: Material, now: datetime) -> bool:
    """Whether two thirds of the certificate's life are over."""
    return now >= material.not_before + (material.not_after - material.not_before) * RENEW_AT


def server_names(namespace: str) -> tuple[str, ...]:
    """Names under which gateways reach the operator."""
    return (f"{SERVICE}.{namespace}.svc.cluster.local", f"{SERVICE}.{namespace}.svc", SERVICE, "localhost")


async def ensure(secrets: Secrets, namespace: str, now: datetime) -> Material:
    """The server's pair, after all three Secrets exist and are fresh. Safe to call from several replicas at once.

    Raises:
        CertificateError: when a Secret is unusable, or others keep changing it.
        ClusterError: when the API server refuses or does not answer.
    """
    authority = await _ensure(secrets, namespace, AUTHORITY, now, lambda: issue_authority(now))
    await _ensure(
        secrets, namespace, CLIENT, now, lambda: issue(authority, CLIENT, ("tierwise-gateway",), now, server=False)
    )
    return await _ensure(
        secrets, namespace, SERVER, now, lambda: issue(authority, SERVICE, server_names(namespace), now, server=True)
    )


async def _ensure(secrets: Secrets, namespace: str, name: str, now: datetime, make: Callable[[], Material]) -> Material:
    for _ in range(ATTEMPTS):
        try:
            found = await secrets.secret(namespace, name)
        except NotFoundError:
            try:
                return read(await secrets.create(_manifest(namespace, name, make())))
            except ConflictError:
                continue  # another replica was faster: take its
        material = read(found)
        if not needs_renewal(material, now):
            return material
        manifest = _manifest(namespace, name, make())
        manifest["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
        try:
            return read(await secrets.apply(manifest))
        except ConflictError:
            continue
    raise CertificateError(
        f"Secret {namespace}/{name} changed {ATTEMPTS} times while it was renewed: is another one at it?"
    )


def read(secret: Mapping[str, Any]) -> Material:
    """The material in a Secret of ours.

    Raises:
        CertificateError: when a field is missing or is no PEM; the remedy is to delete the Secret.
    """
    name = secret.get("metadata", {}).get("name", "?")
    data = secret.get("data") or {}
    try:
        ca, certificate, key = (
            base64.b64decode(data[part], validate=True) for part in ("ca.crt", "tls.crt", "tls.key")
        )
        parsed = x509.load_pem_x509_certificate(certificate)
    except (KeyError, ValueError, binascii.Error) as error:
        raise CertificateError(
            f"Secret {name} has no usable certificate ({error}): delete it, and the operator makes a new one"
        ) from error
    return Material(ca, certificate, key, parsed.not_valid_before_utc, parsed.not_valid_after_utc)


def _manifest(namespace: str, name: str, material: Material) -> dict[str, Any]:
    encode = {"ca.crt": material.ca, "tls.crt": material.certificate, "tls.key": material.key}
    return {
        "apiVersion": "v1",
        "data": {field: base64.b64encode(value).decode() for field, value in encode.items()},
        "kind": "Secret",
        "metadata": {
            "labels": {"app.kubernetes.io/managed-by": "tierwise", "app.kubernetes.io/part-of": "tierwise"},
            "name": name,
            "namespace": namespace,
        },
        "type": "kubernetes.io/tls",
    }


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + life)
    )
