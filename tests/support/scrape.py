"""Reads an exposition of metrics with the parser of Prometheus' own client."""

from __future__ import annotations

from collections.abc import Callable
import time

from prometheus_client.parser import text_string_to_metric_families
import requests


class Scrape:
    """The series of one scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.series: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(text):
            assert family.documentation, family.name
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self.series, f"twice: {key}"
                self.series[key] = sample.value

    def names(self) -> set[str]:
        return {name for name, _ in self.series}

    def value(self, name: str, **labels: str) -> float:
        """The sum of the series with these labels, 0 without any."""
        wanted = set(labels.items())
        return sum(
            value
            for (found, have), value in self.series.items()
            if found == name and wanted <= have
        )

    def values_of(self, label: str) -> set[str]:
        return {value for _, labels in self.series for name, value in labels if name == label}


def scrape(address: str) -> Scrape:
    response = requests.get(f"http://{address}/metrics", timeout=20)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Scrape(response.text)


def until(address: str, is_met: Callable[[Scrape], bool], timeout_s: float = 30) -> Scrape:
    """Scrapes until a condition is met."""
    deadline = time.monotonic() + timeout_s
    while not is_met(found := scrape(address)):
        lines = (line for line in found.text.splitlines() if "_bucket{" not in line)
        assert time.monotonic() < deadline, "\n".join(lines)
        time.sleep(0.05)
    return found
