"""The demo's texts: short English sentences, written for this project, with one of three labels."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"
LABELS = ["negative", "neutral", "positive"]
GENERAL = "general"
DOMAINS = ("service", "finance", "reviews")


@dataclass(frozen=True)
class Example:
    """A text and the index of its label in LABELS."""

    text: str
    label: int


def read(domain: str, split: str) -> list[Example]:
    """The examples of `general` or a domain, of the split `train` or `test`."""
    with (FOLDER / f"{domain}.csv").open(encoding="utf-8", newline="") as file:
        return [
            Example(row["text"], LABELS.index(row["label"])) for row in csv.DictReader(file) if row["split"] == split
        ]
