"""Which rooms the operator runs with: the one place that knows planner, renderer and configuration server by name."""

import functools
from collections.abc import Callable
from datetime import datetime

from tierwise import planner
from tierwise.adapters import cluster
from tierwise.adapters.certificates import Material
from tierwise.adapters.xds import XdsServer
from tierwise.core import situation
from tierwise.render.envoy import consumers
from tierwise.render.envoy import gateway as envoy
from tierwise.render.envoy.options import Authentication, GatewayOptions, Tracing
from tierwise.runtime.app import Operator, Rooms
from tierwise.runtime.clock import utc_now
from tierwise.settings import Settings, SettingsError


def rooms_for(settings: Settings) -> Rooms:
    """The pure functions, with what of the settings they need."""
    loop = situation.Settings(prometheus_url=settings.prometheus_url)
    plan = functools.partial(planner.plan, settings=loop)
    return Rooms(plan=plan, statuses=planner.gateway_statuses, render=envoy.Renderer(gateway_options(settings)))


def gateway_options(settings: Settings) -> GatewayOptions:
    """What of the settings concerns every gateway.

    Raises:
        SettingsError: the issuers of tokens are not what they should be.
    """
    tracing = Tracing(*settings.tracing, settings.tracing_sampling_percent) if settings.tracing is not None else None
    if not settings.authentication:
        return GatewayOptions(tracing=tracing)
    try:
        issuers = consumers.read_issuers(settings.jwt_issuers)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return GatewayOptions(authentication=Authentication(issuers), tracing=tracing)


async def operator(
    settings: Settings, rooms: Rooms | None = None, *, wall: Callable[[], datetime] = utc_now
) -> Operator:
    """The operator as it runs in a cluster, by a given aware UTC clock.

    Raises:
        NotConnectedError: no cluster can be reached by what is set.
    """

    def gateway(tls: Callable[[], Material] | None) -> XdsServer:
        return XdsServer(settings.xds_host, settings.xds_port, tls)

    configuration = await cluster.configure(settings.kubeconfig, settings.context)
    return Operator(settings, rooms or rooms_for(settings), gateway, configuration, wall=wall)
