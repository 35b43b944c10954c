"""A t for each segment, and what guesses the segment of a text: what `tween segments` fits, as one JSON file.

The table of `auto` is of all variants: each of its settings names the member that its t is of. A table of one variant
is written as it was before there were such ones, so that older services read it.

Weights of the router are float16 in base64, for a file of some hundred kilobytes.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from app.errors import BadSegments
from app.names import nfc
from app.segments.segment_classifier import BUCKETS, SegmentClassifier
from app.weights.arena import BASE
from app.weights.auto_recipe import AUTO

log = logging.getLogger(__name__)

FORMAT, ACROSS = "tween segments 1", "tween segments 2"
"""Of the table of one variant, and of the one whose settings name their members."""
MAX_SEGMENTS = 1_000
MAX_BIAS = 1e6
MAX_NAME = 200
MAX_TEXTS = 2**53 - 1
"""The largest whole number that every reader of JSON holds."""


@dataclass(frozen=True)
class Setting:
    """A t and the temperature that fits there, the interval (95 %) of t, and how many labelled texts told so.

    `variant` is what the t is of where the table does not say: the base, whose t is 0, or a variant.
    """

    t: float
    temperature: float
    interval: tuple[float, float]
    texts: int
    variant: str | None = None


@dataclass(frozen=True, eq=False)
class SegmentTable:
    """What was fitted for one variant, or as `auto` for all, on the bank of that fingerprint; `pooled` is what is best
    for all texts together."""

    variant: str
    bank: str
    pooled: Setting
    segments: Mapping[str, Setting]
    router: SegmentClassifier | None

    def checked(self, variant: str, variants: Sequence[str]) -> SegmentTable:
        """Itself, if it is the table of this variant of the bank, or of `auto`; else raises `BadSegments`."""
        if self.variant != variant or variant not in (AUTO, *variants):
            raise BadSegments(
                f"a table for {self.variant[:60]!r} is given for {variant[:60]!r}; loaded: {', '.join(variants)}"
            )
        for name, setting in self.settings:
            if self.member(setting) not in (BASE, *variants):
                raise BadSegments(
                    f"segment {name[:60]!r} goes by {self.member(setting)[:60]!r}; loaded: "
                    f"{', '.join((BASE, *variants))}"
                )
        return self

    @property
    def settings(self) -> list[tuple[str, Setting]]:
        """All settings with their names, the pooled one first."""
        return [("pooled", self.pooled), *self.segments.items()]

    def member(self, setting: Setting) -> str:
        """What the setting's t is of."""
        return setting.variant or self.variant

    def document(self) -> dict[str, Any]:
        """As JSON; `table_of` reads it back."""
        return {
            "format": ACROSS if self.variant == AUTO else FORMAT,
            "variant": self.variant,
            "bank": self.bank,
            "pooled": _filled(self.pooled),
            "segments": {name: _filled(setting) for name, setting in self.segments.items()},
            "entropy": None,  # older services refuse a table without this key
            "router": None if self.router is None else _written(self.router),
        }


def read_table(path: Path) -> SegmentTable:
    """The table in a file; raises `BadSegments`."""
    try:
        return table_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise BadSegments(f"{path} cannot be read: {error}") from error
    except BadSegments as error:
        raise BadSegments(f"{path}: {error}") from error


def table_of(document: object) -> SegmentTable:
    """The table that `document` wrote; raises `BadSegments` with the first thing that does not fit."""
    if not isinstance(document, Mapping) or document.get("format") not in (FORMAT, ACROSS):
        raise BadSegments(
            f"this is no table of segments: its 'format' is not {FORMAT!r} or {ACROSS!r}; `tween segments` writes one"
        )
    across = document["format"] == ACROSS
    try:
        variant = nfc(str(document["variant"]))
        if (variant == AUTO) != across:
            raise ValueError(f"the format {ACROSS!r} is that of {AUTO!r}, and of no other table")
        segments = {_named(name): _setting(value, across) for name, value in document["segments"].items()}
        if len(segments) < len(document["segments"]):
            raise ValueError("it has a segment twice, in two spellings")
        table = SegmentTable(
            variant=variant,
            bank=str(document["bank"]),
            pooled=_setting(document["pooled"], across),
            segments=segments,
            router=None if document["router"] is None else _router(document["router"], segments),
        )
    except KeyError as missing:
        raise BadSegments(f"the table of segments has no entry {missing}") from None
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise BadSegments(f"the table of segments cannot be read: {error}") from None
    if document.get("entropy") is not None:
        log.info("the segment table of %s holds an entropy rule; it is ignored: t is chosen by segment alone", variant)
    if not 0 < len(segments) <= MAX_SEGMENTS:
        raise BadSegments(f"the table has {len(segments)} segments; it may have 1 to {MAX_SEGMENTS}")
    return table


def _named(name: str) -> str:
    if not 0 < len(name) <= MAX_NAME:
        raise ValueError(f"a segment's name has 1 to {MAX_NAME} characters")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError("a segment's name is not valid Unicode: it holds a lone surrogate") from None
    return nfc(name)


def _filled(setting: Setting) -> dict[str, Any]:
    """Without the variant, where it names none."""
    return {field: value for field, value in asdict(setting).items() if value is not None}


def _setting(value: Mapping[str, Any], across: bool) -> Setting:
    low, high = value["interval"]
    variant = nfc(value["variant"]) if across and isinstance(value["variant"], str) else None
    if across and variant is None:
        raise ValueError(f"variant is {str(value['variant'])[:20]!r}, and must be the name of one, or {BASE!r}")
    return Setting(
        _number("t of the base", value["t"], 0, 0) if variant == BASE else _number("t", value["t"], 0, 1),
        _number("temperature", value["temperature"], 0.05, 20),
        (_number("interval", low, 0, 1), _number("interval", high, 0, 1)),
        int(_number("texts", value["texts"], 0, MAX_TEXTS)),
        variant,
    )


def _number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} is {str(value)[:20]!r}, and must be a number from {low:g} to {high:g}")
    return float(value)


def _written(router: SegmentClassifier) -> dict[str, object]:
    halves = router.weights.to(torch.float16).numpy().astype("<f2").tobytes()
    return {
        "segments": list(router.segments),
        "buckets": BUCKETS,
        "bias": router.bias.tolist(),
        "weights": base64.b64encode(halves).decode(),
    }


def _router(value: Mapping[str, Any], segments: Mapping[str, Setting]) -> SegmentClassifier:
    names = tuple(nfc(str(name)) for name in value["segments"])
    strangers = [str(name)[:60] for name in names if name not in segments]
    if strangers or not names:
        raise ValueError(f"the router tells {strangers[:1] or 'no segment'} apart, which the table does not have")
    if len(set(names)) < len(names):
        raise ValueError("the router has a segment twice")
    if value["buckets"] != BUCKETS:
        shown = str(value["buckets"])[:20]
        raise ValueError(f"the router has {shown!r} places for words, and this version has {BUCKETS}")
    raw = bytearray(base64.b64decode(value["weights"], validate=True))
    if len(raw) != 2 * BUCKETS * len(names) or len(value["bias"]) != len(names):
        raise ValueError("the router's weights do not fit its segments")
    weights = torch.frombuffer(raw, dtype=torch.float16).float().reshape(BUCKETS, len(names))
    bias = torch.tensor([_number("bias", b, -MAX_BIAS, MAX_BIAS) for b in value["bias"]])
    if not torch.isfinite(weights).all():
        raise ValueError("the router's weights are not all finite")
    return SegmentClassifier(names, weights, bias)
