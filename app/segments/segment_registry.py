"""The tables that `VARIANT@auto` and `auto` go by: those put live, on every pod, else those of the bank file.

A table is put live as an alias is moved: its document in Redis is replaced in one step, provided that it is still the
one it started from, and pods follow (`replicated.py`). A live table goes before the one of the bank file. There is one
exception: where the live one was fitted on other weights than are loaded and the file's was not, the file's is gone by,
so that a new bank that brings its table is served with it while pods of the old one go on with theirs.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from app.cluster.document_store import DocumentStore
from app.cluster.precondition import Expected
from app.cluster.replicated import Change, Replicated
from app.errors import BadSegments, SegmentsConflict, TweenError, UnknownSegments
from app.segments.segment_table import SegmentTable, table_of
from app.weights.arena import BASE
from app.weights.auto_recipe import AUTO
from app.weights.recipe import Cookbook

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveTable:
    """What was last put live for a variant: the text of its table, None where that was taken away; `changed` in seconds
    since the epoch. At version 0 there has never been one."""

    name: str
    version: int = 0
    table: str | None = None
    changed: float = 0.0
    by: str | None = None

    @property
    def gone_since(self) -> float | None:
        """When it was taken away; 0: there has never been one; None: it is live."""
        return self.changed if self.table is None else None

    def with_table(self, table: str | None, by: str | None) -> LiveTable:
        """One version later; itself, if that is its table already."""
        if table == self.table:
            return self
        return replace(self, version=self.version + 1, table=table, changed=time.time(), by=by)

    def encoded(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def decoded(cls, name: str, raw: bytes) -> LiveTable | None:
        """What `encoded` wrote; None if that cannot be."""
        try:
            live = cls(**json.loads(raw))
        except (ValueError, TypeError):
            return None
        sound = (
            live.name == name
            and isinstance(live.version, int)
            and isinstance(live.changed, float)
            and isinstance(live.table, str | None)
            and isinstance(live.by, str | None)
        )
        return live if sound else None


class SegmentRegistry:
    """By variant or `auto`, the table that this pod goes by: `now`."""

    def __init__(
        self, cookbook: Cookbook, fingerprint: str, filed: Mapping[str, SegmentTable], store: DocumentStore | None
    ) -> None:
        """`filed` are the tables of the bank file, `fingerprint` that of the weights that are loaded."""
        self.now: dict[str, SegmentTable] = dict(filed)
        self._cookbook = cookbook
        self._fingerprint = fingerprint
        self._filed = filed
        self._following = Replicated(
            "segments", store, LiveTable.decoded, self._follow, SegmentsConflict, "the live table of"
        )

    @property
    def shared(self) -> bool:
        """Whether other pods see what is put live."""
        return self._following.shared

    async def start(self) -> None:
        """Learn what is live; from then on, follow it."""
        await self._following.start()

    async def close(self) -> None:
        await self._following.close()

    # -- what is asked of them -------------------------------------------------------------------------

    def is_filed(self, variant: str) -> bool:
        """Whether the bank file has a table for it."""
        return variant in self._filed

    def live(self, variant: str) -> LiveTable | None:
        """What is live for a variant; None where it goes by the bank file, or by nothing."""
        live = self._following.known.get(variant)
        return (
            live if live and live.table is not None and self.now.get(variant) is not self._filed.get(variant) else None
        )

    async def put(
        self, variant: str, document: object, version: Expected = None, by: str | None = None
    ) -> Change[LiveTable]:
        """Have every pod go by a table, as `tween segments` writes it.

        With a `version`, only if the live one is at that (0: if none is live), else `SegmentsConflict`. Raises
        `UnknownVariant`, `BadSegments` for a table that cannot be read, is another variant's, was fitted on other
        weights or leads to recipes that are not allowed here, and `RedisUnavailable`.
        """
        if variant != AUTO:
            self._cookbook.read({"variant": variant})
        table = self._served(variant, document)
        if table.bank != self._fingerprint:
            raise BadSegments(
                f"the table was fitted on weights {table.bank[:16]!r}, and those of {self._fingerprint[:16]!r} are "
                "loaded here; `tween segments` fits it anew"
            )
        text = json.dumps(table.document(), sort_keys=True)
        return await self._following.change(LiveTable(variant), version, lambda live: live.with_table(text, by))

    async def delete(self, variant: str, version: Expected = None, by: str | None = None) -> LiveTable:
        """Take the live table away, on every pod; raises `UnknownSegments` if there is none, and as `put` does."""

        def deleted(live: LiveTable) -> LiveTable:
            if live.table is None:
                raise UnknownSegments(f"no table of segments is live for {variant[:64]!r}")
            return live.with_table(None, by)

        return (await self._following.change(LiveTable(variant), version, deleted)).document

    # -- following what all pods agreed on -------------------------------------------------------------

    async def _follow(self, live: LiveTable) -> None:
        filed, table = self._filed.get(live.name), self._readable(live)
        if table is None or (filed and filed.bank == self._fingerprint != table.bank):
            table = filed
        if table is None:
            self.now.pop(live.name, None)
        else:
            self.now[live.name] = table
            if table.bank != self._fingerprint:
                log.warning("the t's by segment of %s were fitted on other weights", live.name)
        log.info("segments of %s: version %d, %s", live.name, live.version, "live" if live.table else "taken away")

    def _readable(self, live: LiveTable) -> SegmentTable | None:
        """The live table, if there is one that this bank can go by."""
        if live.table is None:
            return None
        try:
            return self._served(live.name, json.loads(live.table))
        except (ValueError, TweenError) as reason:
            log.error("the live table of segments of %r is not followed: %s", live.name, reason)
            return None

    def _served(self, variant: str, document: object) -> SegmentTable:
        """A table whose recipes can all be served here; raises `BadSegments`."""
        table = table_of(document).checked(variant, self._cookbook.variants)
        for name, setting in table.settings:
            member = table.member(setting)
            t = {} if member == BASE else {member: setting.t}
            try:
                self._cookbook.read({"t": t, "temperature": setting.temperature})
            except TweenError as reason:
                raise BadSegments(f"segment {name[:60]!r}: {reason}") from None
        return table
