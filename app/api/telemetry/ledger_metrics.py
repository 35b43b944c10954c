"""What the ledger counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.experiments.events.event_ledger import EventLedger
from app.experiments.events.null_ledger import NullLedger

EVENTS = (
    "exposures",
    "outcomes",
    "sent",
    "resent",
    "folded",
    "duplicates",
    "foreign",
    "dropped_exposures",
    "refused_outcomes",
    "dropped_expired",
    "untaken_draft",
    "untaken_outside",
    "untaken_beyond",
)


class LedgerMetrics(Collector):
    """Events of experiments on their way through this pod."""

    def __init__(self, ledger: EventLedger | NullLedger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        if isinstance(self._ledger, NullLedger):
            return
        events = CounterMetricFamily(
            "tween_ledger_events",
            "exposures and outcomes: written down here, sent to redis, folded here, found twice, and not taken",
            labels=["event"],
        )
        for event in EVENTS:
            events.add_metric([event], self._ledger.counts[event])
        events.add_metric(["torn"], self._ledger.spool.torn)
        yield events
        spool = GaugeMetricFamily(
            "tween_spool_bytes", "events on disk: all, and those that redis has not been sent yet", labels=["state"]
        )
        spool.add_metric(["all"], self._ledger.spool.size)
        spool.add_metric(["unsent"], self._ledger.spool.unread)
        yield spool
        yield GaugeMetricFamily(
            "tween_redis_used_ratio",
            "share of redis's memory that is taken, of what is not evicted: from 0.75 on, events wait on disk",
            value=self._ledger.redis_used,
        )
