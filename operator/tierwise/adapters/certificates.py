"""Certificates of the channel between gateways and operator, made by the operator itself and kept in Secrets.

Not by Helm's `genCA`: `helm template` and Argo CD would make new ones at each rendering. Three Secrets in the
operator's own namespace: the authority (only the operator may read it), the server's pair, and the gateways' pair,
which their Pods mount and Envoy reloads when it changes.

A new authority does not cut the channel: it is published beside the old one first (`ca.crt` holds both), and signs only
when it is `SETTLE` old: each replica and each gateway has read by then that it is to be trusted. Passes alone say
nothing: another replica's may follow a second later.
"""

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
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
# Longer than replicas take to look at the Secrets again (`runtime.channel`), and the kubelet to bring them to gateways.
SETTLE = timedelta(hours=3)
ATTEMPTS = 5


class CertificateError(TierwiseError):
    """A Secret of the gateway channel has no usable certificate, or replicas could not agree on one."""


@dataclass(frozen=True, slots=True)
class Material:
    """A certificate with its key and the authority that gateways or operator check the other side with.

    Attributes:
        ca, certificate, key: PEM; `ca` holds two certificates while one authority follows another.
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


def issue_authority(now: datetime, trusted: bytes = b"") -> Material:
    """A new self-signed authority; those in `trusted` (PEM) that have not run out stay beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("tierwise-xds-ca")
    certificate = (
        _builder(name, name, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        # Two authorities have the same name while one follows the other: this tells verifiers which one signed.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = _pem(certificate)
    older = [_pem(old) for old in _certificates(trusted) if old.not_valid_after_utc > now]
    ca = b"".join((pem, *older))
    return Material(ca, pem, _key_pem(key), certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def issue(authority: Material, name: str, dns_names: tuple[str, ...], now: datetime, *, server: bool) -> Material:
    """A pair signed by the authority, for a server (the operator) or a client (a gateway)."""
    authority_key = serialization.load_pem_private_key(authority.key, password=None)
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
        raise CertificateError(
            f"the key in Secret {AUTHORITY} is none of ours: delete it, and the operator makes a new one"
        )
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    key = ec.generate_private_key(ec.SECP256R1())
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    certificate = (
        _builder(_name(name), issuer.subject, key.public_key(), now, LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(dns) for dns in dns_names]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return Material(
        authority.ca,
        _pem(certificate),
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


def succession(
    held: Material, authority: Material, name: str, dns_names: tuple[str, ...], now: datetime, *, server: bool
) -> Material:
    """What follows a pair that is in use: itself while nothing has to change.

    With a new authority only the trust changes at first, as long as the old signature is still good: the other side may
    not have read of the new one yet. Its signature follows when it has settled and the pair is due.
    """
    certificate = x509.load_pem_x509_certificate(held.certificate)
    good = now < held.not_after and _signed_by_one_of(certificate, authority.ca) and _names(certificate) == dns_names
    if good and held.ca != authority.ca:
        return replace(held, ca=authority.ca)
    settled = now - authority.not_before >= BACKDATE + SETTLE or _signed_by_one_of(certificate, authority.certificate)
    if good and not (settled and needs_renewal(held, now)):
        return held
    return issue(authority, name, dns_names, now, server=server)


async def ensure(secrets: Secrets, namespace: str, now: datetime) -> Material:
    """The server's pair, after all three Secrets exist and are fresh. Safe to call from several replicas at once.

    Raises:
        CertificateError: when a Secret is unusable, or others keep changing it.
        ClusterError: when the API server refuses or does not answer.
    """

    def next_authority(held: Material | None) -> Material:
        if held is None:
            return issue_authority(now)
        return issue_authority(now, held.ca) if needs_renewal(held, now) else held

    authority = await _ensure(secrets, namespace, AUTHORITY, next_authority)

    def next_pair(name: str, dns_names: tuple[str, ...], *, server: bool) -> Callable[[Material | None], Material]:
        def following(held: Material | None) -> Material:
            if held is None:
                return issue(authority, name, dns_names, now, server=server)
            return succession(held, authority, name, dns_names, now, server=server)

        return following

    await _ensure(secrets, namespace, CLIENT, next_pair(CLIENT, ("tierwise-gateway",), server=False))
    return await _ensure(secrets, namespace, SERVER, next_pair(SERVICE, server_names(namespace), server=True))


async def _ensure(
    secrets: Secrets, namespace: str, name: str, following: Callable[[Material | None], Material]
) -> Material:
    """The Secret's material, after what follows it (or nothing) is written, if that differs."""
    for _ in range(ATTEMPTS):
        try:
            found = await secrets.secret(namespace, name)
        except NotFoundError:
            try:
                return read(await secrets.create(_manifest(namespace, name, following(None))))
            except ConflictError:
                continue  # another replica was faster: take its
        held = read(found)
        wanted = following(held)
        if wanted == held:
            return held
        manifest = _manifest(namespace, name, wanted)
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
        _certificates(ca)
        paired = serialization.load_pem_private_key(key, password=None).public_key() == parsed.public_key()
    except (KeyError, TypeError, ValueError, UnsupportedAlgorithm, binascii.Error) as error:
        raise CertificateError(
            f"Secret {name} has no usable certificate ({error}): delete it, and the operator makes a new one"
        ) from error
    if not paired:
        raise CertificateError(
            f"key and certificate in Secret {name} are no pair: delete it, and the operator makes one"
        )
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


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _certificates(pem: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem) if pem else []


def _signed_by_one_of(certificate: x509.Certificate, authorities: bytes) -> bool:
    return any(_signed_by(certificate, authority) for authority in _certificates(authorities))


def _signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(extension.value.get_values_for_type(x509.DNSName))


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
