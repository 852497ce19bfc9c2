"""What a service counts, for Prometheus: decisions, latencies, scores, and drift."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from robust_ood.deployment.drift import LEAST, watch
from robust_ood.deployment.guard import Guard

_RECENT = 500
"""How many of the last images the shares and the drift are of."""
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Telemetry:
    """The counts of one service.

    Args:
        guard: its calibration scores make the bounds of the score histogram.
    """

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.registry = CollectorRegistry()
        self.images = Counter(
            "robust_ood_images", "Images decided on.", ["decision"], registry=self.registry
        )
        self.requests = Counter(
            "robust_ood_requests", "Requests by status.", ["status"], registry=self.registry
        )
        self.latency = Histogram(
            "robust_ood_request_seconds",
            "Time from a request's first byte to its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.scores = Histogram(
            "robust_ood_score", "Scores.", buckets=_bounds(guard), registry=self.registry
        )
        recent = f"the last {_RECENT} images"
        self.rejected = Gauge(
            "robust_ood_reject_rate", f"Share rejected of {recent}.", registry=self.registry
        )
        self.distance = Gauge(
            "robust_ood_drift_distance",
            f"Kolmogorov-Smirnov distance of {recent} from calibration.",
            registry=self.registry,
        )
        self.p_value = Gauge(
            "robust_ood_drift_p_value", f"Its p-value, of {recent}.", registry=self.registry
        )
        self.p_value.set(1)
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def count(self, record: Mapping[str, Any]) -> None:
        """Count a decision."""
        self.images.labels("accepted" if record["accepted"] else "rejected").inc()
        self.scores.observe(record["score"])
        self._recent.append(record["score"])

    def page(self) -> bytes:
        """Return what Prometheus reads."""
        if self._recent:
            scores = np.array(self._recent)
            threshold = float(self.guard.threshold)
            self.rejected.set(float((scores < threshold).mean()))
            if len(scores) >= LEAST:
                calibration = self.guard.calibration.cpu().numpy()
                drift = watch(calibration, scores, threshold, window=_RECENT)
                self.distance.set(drift.windows[0].distance)
                self.p_value.set(drift.windows[0].p_value)
        return generate_latest(self.registry)


def _bounds(guard: Guard) -> list[float]:
    """Return the threshold and quantiles of the calibration scores, as increasing bounds."""
    calibration = guard.calibration.cpu().numpy()
    quantiles = np.quantile(calibration, [0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1])
    bounds = {float(guard.threshold), *map(float, quantiles)}
    return sorted(bounds)
