"""Clients of the API server, Prometheus and Envoy. They carry data in and out and decide nothing."""
