"""The gateways' configuration by Delta ADS.

`catalog`: what to serve. `session`: what one gateway needs next. `server`: gRPC around both.
"""

from tierwise.adapters.xds.server import Tls, XdsServer

__all__ = ["Tls", "XdsServer"]
