"""What a change may start from: a version, or as RFC 9110 13.1 has it, entity tags and whether there is a document."""

from __future__ import annotations

from dataclasses import dataclass

from app.errors import BadPrecondition


@dataclass(frozen=True)
class Precondition:
    """`version` 0 stands for a document that does not exist. `tags` are the versions that `If-Match` names; `exists` is
    true for `If-Match: *` and false for `If-None-Match: *`. None asks for nothing."""

    version: int | None = None
    tags: frozenset[int] | None = None
    exists: bool | None = None

    def __post_init__(self) -> None:
        """Raises `BadPrecondition` for values that no document can meet together."""
        if self.exists is False and self.version:
            raise BadPrecondition(f"version {self.version} contradicts If-None-Match: *; send one of them")
        if self.version is None:
            return
        if (self.exists and self.version == 0) or (self.tags is not None and self.version not in self.tags):
            raise BadPrecondition(f"version {self.version} contradicts If-Match; send one of them")

    @property
    def by_header(self) -> bool:
        """Whether a header asks for something, so that a mismatch is 412 and not 409."""
        return self.tags is not None or self.exists is not None

    def refusal(self, version: int, exists: bool) -> str | None:
        """Why a change cannot start from this version, as the rest of a sentence; None where it can."""
        there = f"is at version {version}" if exists else "does not exist"
        if self.exists is not None and self.exists != exists:
            return f"{there}, and {'If-Match' if self.exists else 'If-None-Match'}: * asks for the contrary"
        if self.tags is not None and version not in self.tags:
            return f"{there}, and If-Match asks for another version; look at it and decide again"
        if self.version in (None, version) or (self.version == 0 and not exists):
            return None
        if exists:
            return f"{there}, not {self.version}; look at it and decide again"
        return f"{there}, so it is not at version {self.version}; 0 stands for that"


Expected = Precondition | int | None
"""What a change may start from; a number is a version, None any."""
