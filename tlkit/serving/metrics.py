"""Metrics for Prometheus: requests, rejects, times, batches, and what is predicted, which shows drift."""

from __future__ import annotations

from functools import cache

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tlkit.plugin.contract import PROBABILITIES
from tlkit.serving.models import ServedModel
from tlkit.serving.scheduler import Answer, Scheduler

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHARES = tuple(tenth / 10 for tenth in range(1, 11))
MOST_LABELS = 100  # a model with more classes has no counter for each


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()

        def histogram(name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"tlkit_{name}", what, labels, buckets=buckets, registry=own)

        labels = ("model", "protocol", "status")
        self._requests = Counter("tlkit_requests", "Requests by model, protocol and status", labels, registry=own)
        self._rejected = Counter("tlkit_rejected", "Requests without an answer, by reason", ["reason"], registry=own)
        self._seconds = histogram("request_seconds", "From a request's headers to its answer", SECONDS, "protocol")
        self._queue = histogram("queue_seconds", "Time that images wait for a free worker", SECONDS, "model")
        self._decode = histogram("decode_seconds", "Time to check a request and decode its pictures", SECONDS, "model")
        self._run = histogram("run_seconds", "Time of one call of the session", SECONDS, "trunk")
        self._batch = histogram("batch_images", "Images per call of the session", SIZES, "trunk")
        self._predicted = Counter("tlkit_predictions", "Images by label", ["model", "label"], registry=own)
        self._confidence = histogram("confidence", "Highest probability of an image", SHARES, "model")
        self._loads = Counter("tlkit_loads", "Models that were loaded, by verdict", ["model", "verdict"], registry=own)
        self._held = Gauge("tlkit_held_images", "Images of unanswered requests", ["trunk"], registry=own)
        self._of = cache(lambda metric, *values: metric.labels(*values))  # which takes longer than to count

    def request(self, model: str, protocol: str, status: str, seconds: float) -> None:
        """Count a request that has ended. `model` is the name of one that is served, or empty."""
        self._of(self._requests, model, protocol, status).inc()
        self._of(self._seconds, protocol).observe(seconds)

    def rejected(self, reason: str) -> None:
        """Count a request that was not answered."""
        self._of(self._rejected, reason).inc()

    def loaded(self, model: str, *, passed: bool) -> None:
        """Count a model that was loaded, or that failed to."""
        self._loads.labels(model, "passed" if passed else "failed").inc()

    def batch(self, trunk: str, images: int, seconds: float) -> None:
        """Count a call of a session; called by its workers."""
        self._of(self._batch, trunk).observe(images)
        self._of(self._run, trunk).observe(seconds)

    def watch(self, trunk: str, scheduler: Scheduler) -> None:
        """Show from now on how full the queue of a scheduler is."""
        self._held.labels(trunk).set_function(lambda: scheduler.held)

    def answered(self, served: ServedModel, answer: Answer) -> None:
        """Count an answer, the labels in it and their probability."""
        name = served.source.name
        self._of(self._queue, name).observe(answer.queued)
        self._of(self._decode, name).observe(answer.decoded)
        probabilities = answer.arrays.get(served.prefix + PROBABILITIES)
        if probabilities is None:
            return
        confidence = self._of(self._confidence, name)
        for best, value in zip(probabilities.argmax(1), np.max(probabilities, axis=1), strict=True):
            if len(served.labels) <= MOST_LABELS:
                self._of(self._predicted, name, served.labels[best]).inc()
            confidence.observe(float(value))

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)
