"""Envoy's configuration from a `World`: clusters, endpoints, routes, secrets, bootstrap. One builder per resource."""
