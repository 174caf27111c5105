"""Prometheus metrics of a loader, served over HTTP by a thread of this process (extra `[metrics]`).

Counters are the sums of LoaderStats, read when somebody asks; nothing is measured here. A loop that opens a loader per
phase shows the current one: its counters begin at zero, as Prometheus expects of a restart.
"""

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from wv_loader.errors import LoaderError
from wv_loader.stats import LoaderStats

_COUNTERS = {
    "batches": ("batches", "Batches handed out."),
    "samples": ("samples", "Samples handed out, masked and padded ones not counted."),
    "read_bytes": ("bytes", "Bytes of image files read."),
    "read_seconds": ("read_seconds_total", "Time of reading threads, waits for the disk included."),
    "consumer_wait_seconds": ("wait_seconds_total", "Time that the consumer waited for a batch."),
    "consumer_first_wait_seconds": ("first_wait_seconds_total", "Of it, for the first batch of each epoch."),
    "consumer_work_seconds": ("busy_seconds_total", "Time that the consumer spent with batches."),
    "ready_batches_seen": ("ready_batches_total", "Batches that lay ready, summed over batches asked for."),
}
_GAUGES = {
    "ready_batches": ("ready_batches", "Finished batches that wait for the consumer."),
    "batches_under_way": ("batches_under_way", "Batches that are planned and not finished."),
}


class MetricsServer:
    """Serves `/metrics` until closed, or until the process ends. A context."""

    def __init__(self, collector: "_Collector", server: Any, thread: threading.Thread, host: str) -> None:
        self.port = int(server.server_port)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/metrics"
        self._collector, self._server, self._thread = collector, server, thread

    def show(self, stats: LoaderStats) -> None:
        """Go on with the figures of another loader."""
        self._collector.stats = stats

    def close(self) -> None:
        """Free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve_metrics(stats: LoaderStats, port: int, *, host: str = "127.0.0.1", rank: int = 0) -> MetricsServer:
    """Serve a loader's figures in Prometheus' text format.

    Args:
        stats: `stats` of the loader.
        port: TCP port; 0 takes a free one, which `port` of the returned server names.
        host: address to listen on; only this machine by default.
        rank: a label of all metrics.

    Raises:
        LoaderError: prometheus_client is not installed, or nobody can listen there.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise LoaderError(
            "metrics need the package prometheus_client, which is not installed; "
            "pip install 'wv-toolkit[metrics]', or do without the port"
        ) from error
    registry = CollectorRegistry()
    collector = _Collector(stats, rank)
    registry.register(collector)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "ports go from 0 to 65535"
        raise LoaderError(f"metrics can't be served at {host}:{port}: {reason}; choose another port, or 0") from error
    return MetricsServer(collector, server, thread, host)


class _Collector:
    """Makes metric families of what the stats are when somebody asks."""

    def __init__(self, stats: LoaderStats, rank: int) -> None:
        self.stats = stats
        self._rank = rank

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        stats, label = self.stats.snapshot(), [str(self._rank)]
        for families, table in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES)):
            for name, (attribute, text) in table.items():
                family = families(f"wv_loader_{name}", text, labels=["rank"])
                family.add_metric(label, getattr(stats, attribute))
                yield family
        stages = {
            "seconds": (stats.stage_seconds, "Time at work over threads; of read, that decoding waited for files."),
            "capacity_seconds": (stats.stage_capacity, "Time that the stage had: the other's share of it is its load."),
        }
        for name, (values, text) in stages.items():
            family = CounterMetricFamily(f"wv_loader_stage_{name}", text, labels=["rank", "stage"])
            for stage, value in values.items():
                family.add_metric([*label, stage], value)
            yield family
        failures = CounterMetricFamily("wv_loader_failures", "Masked samples by reason.", labels=["rank", "reason"])
        for reason, count in sorted(stats.failures.items()):
            failures.add_metric([*label, reason], count)
        yield failures
