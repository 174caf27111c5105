"""Prometheus metrics: scraped over loopback, as Prometheus does, and parsed by its own client."""

import socket
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from wv_loader import Loader, LoaderError, LoaderStats, serve_metrics


def scrape(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client (extra [metrics]) is missing")
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        text = answer.read().decode()
    families = parser.text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


@pytest.fixture
def client() -> None:
    pytest.importorskip("prometheus_client", reason="prometheus_client (extra [metrics]) is missing")


@pytest.mark.usefixtures("client")
def test_a_scrape_gives_what_stats_says(small_dataset: Path) -> None:
    with (
        Loader(small_dataset, batch_size=24, size_px=8, threads=2) as loader,
        serve_metrics(loader.stats, 0, rank=3) as server,
    ):
        list(loader)
        loader.stats.failures["checksum"] += 2
        assert server.url == f"http://127.0.0.1:{server.port}/metrics"
        found, stats = scrape(server.url), loader.stats.snapshot()
        rank = ("rank", "3")
        assert found["wv_loader_samples_total", frozenset([rank])] == loader.num_samples
        assert found["wv_loader_batches_total", frozenset([rank])] == 10
        assert found["wv_loader_read_bytes_total", frozenset([rank])] == stats.bytes > 0
        assert found["wv_loader_consumer_wait_seconds_total", frozenset([rank])] == stats.wait_seconds_total > 0
        assert found["wv_loader_failures_total", frozenset([rank, ("reason", "checksum")])] == 2
        for stage, share in stats.occupancy.items():
            labels = frozenset([rank, ("stage", stage)])
            capacity = found["wv_loader_stage_capacity_seconds_total", labels]
            assert found["wv_loader_stage_seconds_total", labels] / capacity == pytest.approx(share)
        server.show(LoaderStats(samples=7))  # the loader of the next phase
        assert scrape(server.url)["wv_loader_samples_total", frozenset([rank])] == 7
        port, threads = server.port, threading.active_count()
    assert threading.active_count() < threads
    serve_metrics(LoaderStats(), port).close()  # it is free again


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(
    ("host", "reason"), [("127.0.0.1", "Address already in use"), ("203.0.113.9", "Cannot assign")]
)
def test_where_nobody_can_listen_it_is_one_line(host: str, reason: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LoaderError, match=rf"metrics can't be served at {host}:{port}: {reason}.*choose another"):
            serve_metrics(LoaderStats(), port, host=host)


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(LoaderError, match=r"prometheus_client, which is not installed; pip install 'wv-toolkit\[metr"):
        serve_metrics(LoaderStats(), 0)
