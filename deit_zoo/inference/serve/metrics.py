"""What the service counts, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

FORMAT = CONTENT_TYPE_LATEST
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Requests by status, images by outcome, seconds of a request, sizes of batches, what waits."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, processor time and open files
        self.requests = Counter(
            "deit_zoo_requests", "Requests that were answered.", ["status"], registry=self.registry
        )
        self.images = Counter(
            "deit_zoo_images", "Images by what became of them.", ["outcome"], registry=self.registry
        )
        self.seconds = Histogram(
            "deit_zoo_request_seconds", "From a request to its answer.", registry=self.registry
        )
        self.batches = Histogram(
            "deit_zoo_batch_size",
            "Images that the model saw together.",
            buckets=BATCHES,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "deit_zoo_images_waiting", "Images that wait for their answer.", registry=self.registry
        )

    def text(self) -> bytes:
        """All of it, in Prometheus' own format."""
        return generate_latest(self.registry)
