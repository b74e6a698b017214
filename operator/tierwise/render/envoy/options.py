"""What a platform team may set about the gateway; everything else follows from tiers and policies."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Settings of every gateway.

    Attributes:
        port: TCP port of the OpenAI API. address: what it binds.
        system_ca_path: file on the gateway with the certificates that providers are verified against by default.
        max_body_bytes: largest request body; each is held in memory once while its model is read.
        idle_timeout_seconds: longest silence of a request or stream; a completion that is not streamed is silent until
            it is done.
        access_log: write one JSON line per request (no prompt, no answer) to standard output.
    """

    port: int = 8080
    address: str = "0.0.0.0"  # noqa: S104 - a gateway listens on its Pod's address
    system_ca_path: str = "/etc/ssl/certs/ca-certificates.crt"
    max_body_bytes: int = 16 * 1024 * 1024
    idle_timeout_seconds: float = 900.0
    access_log: bool = True


DEFAULTS = GatewayOptions()
