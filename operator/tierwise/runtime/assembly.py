"""Which rooms the operator runs with: the one place that knows planner, renderer and configuration server by name."""

from collections.abc import Callable

from tierwise import planner
from tierwise.adapters import cluster
from tierwise.adapters.certificates import Material
from tierwise.adapters.xds import XdsServer
from tierwise.render.envoy import gateway as envoy
from tierwise.runtime.app import Operator, Rooms
from tierwise.settings import Settings

ROOMS = Rooms(plan=planner.plan, statuses=planner.gateway_statuses, render=envoy.Renderer())


async def operator(settings: Settings, rooms: Rooms = ROOMS) -> Operator:
    """The operator as it runs in a cluster.

    Raises:
        NotConnectedError: no cluster can be reached by what is set.
    """

    def gateway(tls: Callable[[], Material] | None) -> XdsServer:
        return XdsServer(settings.xds_host, settings.xds_port, tls)

    return Operator(settings, rooms, gateway, await cluster.configure(settings.kubeconfig, settings.context))
