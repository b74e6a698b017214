"""The HorizontalPodAutoscaler's algorithm for an average value per Pod, as `k8s.io/kubernetes` 1.3x computes it. Pure.

Source: replica_calculator.go (`calcPlainMetricReplicas`) and horizontal.go in pkg/controller/podautoscaler, with their
stabilisation and default scaling policies: desired = ceil(pods * average / target), no change within the tolerance,
Pods that are not ready count as idle when scaling up, a scale-down waits for the highest recommendation of a window.
"""

import math
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class HpaSpec:
    """One autoscaler.

    Attributes:
        target: wanted average of the metric per replica.
        min_replicas, max_replicas: bounds.
        sync_seconds: between two looks; the controller manager's default is 15.
        tolerance: relative; default 0.1.
        down_stabilisation_seconds: default 300.
        metric_window_seconds: over which the metric is averaged (the Prometheus query's range).
    """

    target: float
    min_replicas: int
    max_replicas: int
    sync_seconds: float = 15.0
    tolerance: float = 0.1
    down_stabilisation_seconds: float = 300.0
    metric_window_seconds: float = 30.0


@dataclass(slots=True)
class Hpa:
    """One autoscaler's memory: its recommendations within the stabilisation window."""

    spec: HpaSpec
    _recommended: list[tuple[float, int]] = field(default_factory=list)

    def bound(self, minimum: int, maximum: int) -> None:
        """Move the bounds, as the operator does."""
        self.spec = replace(self.spec, min_replicas=minimum, max_replicas=max(minimum, maximum))

    def desired(self, now_seconds: float, current: int, ready: int, average: float | None) -> int:
        """Replicas wanted.

        Args:
            now_seconds: on any clock that does not go back.
            current: replicas asked for now.
            ready: of these, how many are ready and have a metric.
            average: of the metric over the ready ones; None when unknown: then nothing changes but the bounds.
        """
        spec = self.spec
        raw = current if average is None or ready == 0 else self._raw(current, ready, average)
        self._recommended = [
            (at, value) for at, value in self._recommended if now_seconds - at <= spec.down_stabilisation_seconds
        ]
        self._recommended.append((now_seconds, raw))
        wanted = max(value for _, value in self._recommended) if raw < current else raw
        wanted = min(wanted, current) if raw < current else wanted
        # Default scale-up policies: at most 4 Pods or 100 % per period, whichever is more.
        wanted = min(wanted, max(current * 2, current + 4))
        return max(spec.min_replicas, min(spec.max_replicas, wanted))

    def _raw(self, current: int, ready: int, average: float) -> int:
        spec = self.spec
        ratio = average / spec.target
        unready = current - ready
        if ratio > 1.0 and unready > 0:
            # Those that start count as idle: no further scale-up for what they will take over.
            damped = average * ready / current / spec.target
            if damped <= 1.0 + spec.tolerance:
                return current
            return math.ceil(damped * current)
        if abs(ratio - 1.0) <= spec.tolerance:
            return current
        return math.ceil(ratio * ready)
