"""Figures for Prometheus, gathered when they are asked for, as status gathers them."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

from . import log, status
from .config import Config
from .outbox import OutboxError

PREFIX = "se3_uploader"
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
"""Seconds: from a platform next door to the default total time limit."""

IDLE = 10.0
"""Seconds after which whoever asks and then says nothing is hung up on."""


def _certificate_ends(endpoint: Mapping[str, Any]) -> Optional[float]:
    ends = endpoint["certificate_expires"]
    return None if ends is None else datetime.fromisoformat(ends).timestamp()


_ENDPOINT: Tuple[Tuple[str, str, Callable[[Mapping[str, Any]], Optional[float]], str], ...] = (
    (
        "counter", "events_delivered", lambda e: e["delivered"],
        "Events (or reports) the platform accepted.",
    ),
    ("gauge", "outbox_pending", lambda e: e["pending"], "Seen, not delivered yet."),
    ("gauge", "outbox_dead", lambda e: e["dead"], "Dead letters: refused for good, or unusable."),
    (
        "counter", "events_lost", lambda e: e["lost"],
        "Deleted by the source before they were sent or copied, or discarded.",
    ),
    (
        "gauge", "oldest_pending_seconds", lambda e: e["oldest_pending_s"] or 0.0,
        "Age of the oldest pending one.",
    ),
    (
        "gauge", "deleted_in_seconds", lambda e: e["deleted_in_s"],
        "Until the source deletes the oldest event that is neither sent nor copied.",
    ),
    (
        "gauge", "endpoint_ok", lambda e: float(e["state"] == "ok"),
        "1: takes deliveries; 0: retrying or paused.",
    ),
    (
        "gauge", "certificate_expiry_timestamp_seconds", _certificate_ends,
        "When the platform's certificate ends, epoch seconds.",
    ),
)  # fmt: skip
"""Kind, name, figure of an endpoint of status --json (None: there is none), help."""


class Metrics:
    """The port that Prometheus asks. Raises ImportError where the extra is not installed, OSError
    where the address cannot be listened on."""

    def __init__(self, config: Config) -> None:
        from prometheus_client import CollectorRegistry, Histogram, start_http_server

        self._config = config
        registry = CollectorRegistry()
        self._seconds = Histogram(
            f"{PREFIX}_delivery_seconds",
            "How long a request took until its answer.",
            ["endpoint"],
            buckets=BUCKETS,
            registry=registry,
        )
        registry.register(self)
        host, _, port = (config.metrics.listen or "").rpartition(":")
        self._server = start_http_server(int(port), host.strip("[]"), registry)[0]
        # Its default is to wait for ever, with a thread for each connection.
        handler: Any = self._server.RequestHandlerClass
        handler.timeout = IDLE

    def observe(self, endpoint: str, seconds: float) -> None:
        """Count an answer of an endpoint that came after so many seconds."""
        self._seconds.labels(endpoint).observe(seconds)

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()

    def collect(self) -> Iterator[Any]:
        """Yield metric families; called by prometheus_client in a thread of its own."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        try:
            found = status.collect(self._config, time.time())
        except OutboxError:
            return
        # What is still pending for a platform that was taken out is nothing to be woken up for.
        endpoints = [e for e in found["endpoints"] if e["configured"]]
        for kind, name, figure, text in _ENDPOINT:
            family = families[kind](f"{PREFIX}_{name}", text, labels=["endpoint"])
            for endpoint in endpoints:
                value = figure(endpoint)
                if value is not None:
                    family.add_metric([endpoint["name"]], value)
            if family.samples:
                yield family
        yield from self._without_label(found)

    def _without_label(self, found: Dict[str, Any]) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        figures: List[Tuple[str, Optional[float], str]] = [
            ("source_behind", found["source"]["behind"], "Events not seen yet."),
            ("source_ok", float(found["source"]["error"] is None), "1: it can be read."),
            ("outbox_bytes", found["outbox"]["bytes"], "Size of the outbox's files."),
            ("outbox_max_bytes", found["outbox"]["max_bytes"], "Limit of copied payloads."),
        ]
        for name, value, text in figures:
            if value is not None:
                yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)


def start(config: Config) -> Optional[Metrics]:
    """Listen where the configuration wants it; what fails is logged, since delivery goes first."""
    listen = config.metrics.listen
    if listen is None:
        return None
    try:
        metrics = Metrics(config)
    except ImportError:
        log.error("metrics.listen needs a package: pip install 'se3-uploader[metrics]'")
    except OSError as error:
        log.error(f"cannot listen on {listen} for metrics ({error.strerror}): is the port in use?")
    else:
        log.info(f"metrics are at http://{listen}/metrics")
        return metrics
    return None
