"""Prometheus metrics, read from the objects' own counters when somebody asks: nothing is counted twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from app.api.auth.roles import needs
from app.api.dependencies import TheEngine, ThePredictor
from app.api.outcome_routes import TheLedger
from app.api.telemetry.ledger_metrics import LedgerMetrics
from app.api.telemetry.request_metrics import RequestTally
from app.serving.engine import Engine
from app.serving.executor import gpu_memory
from app.serving.histogram import Histogram

router = APIRouter(tags=["probes"])


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
@needs(None)
async def metrics(request: Request, engine: TheEngine, predictor: ThePredictor, ledger: TheLedger) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(EngineMetrics(engine, predictor.selector.chosen))
    registry.register(RequestCollector(request.app.state.tally))
    registry.register(LedgerMetrics(ledger))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class RequestCollector(Collector):
    """What was asked over HTTP."""

    def __init__(self, tally: RequestTally) -> None:
        self._tally = tally

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("tween_requests_in_flight", "requests being answered", value=self._tally.in_flight)
        yield CounterMetricFamily(
            "tween_unread_connections",
            "connections cut because nothing of a reply was read for TWEEN_WRITE_S",
            value=self._tally.unread,
        )
        seconds = HistogramMetricFamily(
            "tween_request_seconds",
            "from a request's headers to the end of its reply; status 499: the caller hung up",
            labels=["method", "route", "status"],
        )
        for (method, route, status), histogram in self._tally.requests.items():
            _add(seconds, [method, route, str(status)], histogram)
        yield seconds


class EngineMetrics(Collector):
    """What the engine has done since it started, and what it believes about this machine."""

    def __init__(self, engine: Engine, chosen: Mapping[str, int]) -> None:
        """`chosen` counts the texts whose t was chosen here, by what chose it."""
        self._engine = engine
        self._chosen = chosen

    def collect(self) -> Iterator[Metric]:
        yield from self._batches()
        yield from self._stages()
        yield from self._device()
        yield from self._units()
        yield from self._tiers()
        yield from self._predictions()
        yield self._aliases()
        yield self._automatic()
        yield from self._redis()
        yield from self._scheduler()

    def _batches(self) -> Iterator[Metric]:
        batcher = self._engine.batcher
        rows = CounterMetricFamily(
            "tween_rows", "texts run, on a finished blend (vector) or mixed from the members", labels=["way"]
        )
        rows.add_metric(["vector"], batcher.rows_on_vectors)
        rows.add_metric(["mixed"], batcher.rows_mixed)
        yield rows
        yield CounterMetricFamily("tween_batches", "forward passes", value=batcher.batches)
        yield CounterMetricFamily("tween_tokens", "tokens run", value=batcher.tokens)
        yield CounterMetricFamily("tween_refused", "requests refused because the queue was full", value=batcher.refused)
        yield GaugeMetricFamily("tween_waiting_rows", "texts that wait for a forward pass", value=batcher.waiting_rows)
        yield CounterMetricFamily(
            "tween_out_of_memory", "passes that memory was too short for", value=batcher.out_of_memory
        )
        yield GaugeMetricFamily(
            "tween_batch_token_limit",
            "tokens that a pass may have, fewer after a shortage",
            value=batcher.budget.tokens,
        )

    def _stages(self) -> Iterator[Metric]:
        batcher = self._engine.batcher
        for name, help_text, histogram in (
            ("tween_batch_rows", "texts in a forward pass", batcher.sizes),
            ("tween_batch_tokens", "tokens in a forward pass", batcher.lengths),
            ("tween_pass_seconds", "forward passes", batcher.passes),
        ):
            family = HistogramMetricFamily(name, help_text)
            _add(family, [], histogram)
            yield family
        stages = HistogramMetricFamily(
            "tween_stage_seconds", "what requests wait for, those that are not remembered", labels=["stage"]
        )
        for stage, histogram in self._engine.stages.items():
            _add(stages, [stage], histogram)
        yield stages

    def _device(self) -> Iterator[Metric]:
        memory = gpu_memory(self._engine.bank.device)
        if not memory:
            return
        family = GaugeMetricFamily("tween_gpu_bytes", "memory of the GPU: free, all, and taken by us", labels=["state"])
        for state, count in memory.items():
            family.add_metric([state], count)
        yield family

    def _units(self) -> Iterator[Metric]:
        compute = self._engine.compute
        units = GaugeMetricFamily("tween_units", "units of compute (worker processes, or a thread)", labels=["state"])
        units.add_metric(["idle"], compute.idle)
        units.add_metric(["all"], compute.units)
        yield units
        yield CounterMetricFamily(
            "tween_replayed_passes", "passes on a GPU that replayed a recording", value=compute.replayed
        )
        yield CounterMetricFamily(
            "tween_hedged_passes",
            "passes that a second worker was asked for, as the first was late",
            value=compute.hedged,
        )
        yield CounterMetricFamily(
            "tween_worker_restarts", "worker processes that died and were replaced", value=compute.restarts
        )

    def _tiers(self) -> Iterator[Metric]:
        events = CounterMetricFamily("tween_blends", "what happened to blends, by tier", labels=["tier", "event"])
        sizes = GaugeMetricFamily("tween_slots", "slots for blends in memory, by state", labels=["state"])
        for tier, counters in self._engine.blends.counters().items():
            for event, count in counters.items():
                if event not in ("blends", "kept", "slots", "asked", "slot_bytes"):
                    events.add_metric([tier, event], count)
        memory = self._engine.blends.counters()["memory"]
        sizes.add_metric(["filled"], memory["blends"])
        sizes.add_metric(["kept"], memory["kept"])
        sizes.add_metric(["all"], memory["slots"])
        sizes.add_metric(["asked"], memory["asked"])
        yield events
        yield sizes

    def _predictions(self) -> Iterator[Metric]:
        """The hit ratio is (memory + redis) / (memory + redis + misses)."""
        if self._engine.predictions is None:
            return
        events = CounterMetricFamily(
            "tween_predictions",
            "predictions found in memory or redis or missed, and entries in redis",
            labels=["event"],
        )
        for event, count in self._engine.predictions.counters().items():
            events.add_metric([event], count)
        yield events

    def _aliases(self) -> Metric:
        versions = GaugeMetricFamily(
            "tween_alias_version", "version of each alias as this pod knows it", labels=["alias"]
        )
        for alias in self._engine.aliases.all():
            versions.add_metric([alias.name], alias.version)
        return versions

    def _automatic(self) -> Metric:
        """Many `pooled` ones mean that callers name segments for which no t was fitted."""
        chosen = CounterMetricFamily(
            "tween_automatic_t", "texts whose t was chosen here, by what chose it", labels=["by"]
        )
        for by, count in self._chosen.items():
            chosen.add_metric([by], count)
        return chosen

    def _redis(self) -> Iterator[Metric]:
        costs = GaugeMetricFamily(
            "tween_blend_cost_seconds",
            "what building, fetching and writing a blend costs here, builds by their kind",
            labels=["way", "kind"],
        )
        for way, kind, seconds in self._engine.blends.costs():
            costs.add_metric([way, kind], seconds)
        is_open = GaugeMetricFamily(
            "tween_redis_breaker_open", "1 while Redis is left alone, by what is asked of it", labels=["calls"]
        )
        openings = CounterMetricFamily(
            "tween_redis_breaker_openings", "times that Redis was found not to answer", labels=["calls"]
        )
        for name, breaker in self._engine.blends.breakers().items():
            is_open.add_metric([name], breaker.is_open)
            openings.add_metric([name], breaker.openings)
        yield costs
        yield is_open
        yield openings

    def _scheduler(self) -> Iterator[Metric]:
        scheduler = self._engine.blends.scheduler
        costs = GaugeMetricFamily("tween_cost_seconds", "what a build and a token of a pass cost", labels=["of"])
        costs.add_metric(["build"], scheduler.costs.build)
        costs.add_metric(["token"], scheduler.costs.token)
        yield costs
        yield GaugeMetricFamily(
            "tween_recipe_reuse", "share of requests that name a recipe seen before", value=scheduler.reuse
        )


def _add(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    buckets = [("+Inf" if bound == inf else str(bound), float(count)) for bound, count in histogram.buckets()]
    family.add_metric(labels, buckets, histogram.sum)
