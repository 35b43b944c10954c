"""What is counted of requests, and how it is told to Prometheus."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from app.models.bank import BankSpec
from app.serving.histogram import Histogram

Samples = dict[tuple[str, ...], float]


def scrape(client: httpx.Client) -> Samples:
    """Values by name and values of labels in the order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }


def test_requests_are_counted_by_route_and_status(serve: Callable, spec: BankSpec) -> None:
    client = serve(spec).client
    for _ in range(3):
        client.post("/v1/predict", json={"texts": "thanks", "recipe": "angry@0.4"})
    client.post("/v1/predict", json={"texts": "thanks", "recipe": "nobody"})
    client.get("/v1/blends/" + "0" * 32)
    for number in range(5):
        client.get(f"/nothing/{number}")
    samples = scrape(client)
    counts = {key[1:]: value for key, value in samples.items() if key[0] == "tween_request_seconds_count"}
    assert counts["POST", "/v1/predict", "200"] == 3 and counts["POST", "/v1/predict", "404"] == 1
    assert counts["GET", "/v1/blends/{key}", "404"] == 1
    assert counts["GET", "other", "404"] == 5  # and not a series for each path that a caller thinks up
    assert samples[("tween_requests_in_flight",)] == 1  # this one
    assert not any("thanks" in part or "nobody" in part for key in samples for part in key)


def test_stages_and_batches_are_timed(serve: Callable, spec: BankSpec) -> None:
    client = serve(spec).client
    client.post("/v1/predict", json={"texts": ["thanks", "never again"], "recipe": "angry@0.4"})
    samples = scrape(client)
    for stage in ("queue", "blend", "tokenize", "forward"):
        assert samples["tween_stage_seconds_count", stage] == 1
    batches = samples[("tween_batches_total",)]
    assert samples[("tween_batch_rows_count",)] == samples[("tween_pass_seconds_count",)] == batches
    assert samples[("tween_batch_rows_sum",)] == 2
    assert samples[("tween_batch_tokens_sum",)] == samples[("tween_tokens_total",)]
    assert samples["tween_batch_rows_bucket", "+Inf"] == batches
    assert not any(key[0].startswith("tween_gpu") for key in samples)
    assert samples[("tween_replayed_passes_total",)] == 0


@given(st.lists(st.floats(0, 20)))
def test_a_bucket_holds_what_is_up_to_its_bound(values: list[float]) -> None:
    bounds = (0.5, 1.0, 10.0)
    histogram = Histogram(bounds)
    for value in values:
        histogram.note(value)
    for bound, count in histogram.buckets():
        assert count == sum(value <= bound for value in values)
    assert histogram.sum == pytest.approx(sum(values))
