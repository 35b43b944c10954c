"""Events on this pod's disk, before anything else happens to them, until Redis is known to have them for good.

    FOLDER/pod-WORD/lock                   held by the process that writes here, and free when it ends however it ends
    FOLDER/pod-WORD/00001732445000000000000.events      a segment: lines "CRC-32 of the JSON, JSON", in order

A segment is appended to and fsynced, never changed, and deleted as a whole. A line that a crash tore, or whose checksum
is wrong, is left out and counted; the lines after it are read. A process that starts adopts the segments of processes
that have ended. Nothing here may be called by two threads at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.errors import SpoolFull

MIB = 1024 * 1024
SEGMENT_BYTES = 4 * MIB
SEGMENT_SECONDS = 5.0
"""After so many bytes or seconds a new segment is begun, as only whole ones can be deleted."""
SUFFIX = ".events"


@dataclass
class Segment:
    """One file, the bytes of it that are on disk for sure, and how many of them have been read."""

    path: Path
    size: int
    read: int = 0
    began: float = 0.0


class Spool:
    """The segments of one process. Everything raises `OSError` where the disk fails."""

    def __init__(self, folder: Path, limit: int) -> None:
        """`limit`: most bytes that may lie here; what lies here stays, and what is new is refused."""
        self.torn = 0
        self.segments: list[Segment] = []
        self._root = folder
        self._limit = limit
        self._folder: Path | None = None
        self._lock: int | None = None
        self._file: int | None = None

    @property
    def size(self) -> int:
        """Bytes that lie here."""
        return sum(segment.size for segment in self.segments)

    @property
    def unread(self) -> int:
        """Bytes that have not been handed out yet."""
        return sum(segment.size - segment.read for segment in self.segments)

    def open(self) -> None:
        """Adopt what processes have left that ended. Without a folder there is nothing, and none is made."""
        if self._root.is_dir():
            self._make_folder()

    def append(self, payloads: list[bytes]) -> None:
        """Write them down in order; when this returns they are on disk. Raises `SpoolFull` and takes none of them."""
        lines = b"".join(b"%08x %b\n" % (zlib.crc32(payload), payload) for payload in payloads)
        if self.size + len(lines) > self._limit:
            raise SpoolFull(
                f"{self.size / MIB:.1f} MiB of events wait on disk for Redis, and {self._limit / MIB:g} may; "
                "nothing that was accepted is lost, and nothing more is accepted until Redis is back"
            )
        segment = self._current()
        assert self._file is not None
        try:
            _write(self._file, lines)
            os.fsync(self._file)
        except OSError:
            # What the disk has of it is unknown: cut it off if that is possible, and never append to this file again.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, segment.size)
            self._end_segment()
            raise
        segment.size += len(lines)

    def read(self, most: int) -> list[bytes]:
        """The next events that have not been handed out, oldest first, and about so many bytes of them."""
        for segment in self.segments:
            if segment.read < segment.size:
                payloads, segment.read = self._lines(segment, segment.read, most)
                return payloads
        return []

    def everything(self, segment: Segment) -> Iterator[list[bytes]]:
        """All events of a segment, in pieces."""
        offset = 0
        while offset < segment.size:
            payloads, offset = self._lines(segment, offset, MIB)
            yield payloads

    def delete(self, segment: Segment, size: int) -> bool:
        """Delete a segment of this size; False if more has been appended meanwhile."""
        if segment.size != size:
            return False
        if segment is self.segments[-1]:
            self._end_segment()
        segment.path.unlink(missing_ok=True)
        self.segments.remove(segment)
        return True

    def close(self) -> None:
        """Give up the lock, so that the next process adopts what is here; an empty folder is removed."""
        self._end_segment()
        if self._folder is not None and self._lock is not None:
            if not self.segments:
                _remove(self._folder)
            os.close(self._lock)
            self._folder = self._lock = None

    def _lines(self, segment: Segment, offset: int, most: int) -> tuple[list[bytes], int]:
        """Whole lines from an offset on, and where the next ones begin."""
        try:
            with segment.path.open("rb") as file:
                file.seek(offset)
                block = file.read(min(most, segment.size - offset))
                if not block.endswith(b"\n") and offset + len(block) < segment.size:
                    block += file.readline()
        except FileNotFoundError:
            return [], segment.size  # somebody has deleted it
        if not block:
            return [], segment.size  # or cut it
        payloads = []
        for line in block.splitlines():
            payload = _checked(line)
            if payload is None:
                self.torn += 1
            else:
                payloads.append(payload)
        return payloads, offset + len(block)

    def _current(self) -> Segment:
        """The segment to append to; a new one if there is none, or if it is large or old enough."""
        now = time.monotonic()
        if self._file is not None:
            last = self.segments[-1]
            if last.size < SEGMENT_BYTES and now - last.began < SEGMENT_SECONDS:
                return last
            self._end_segment()
        folder = self._make_folder()
        path = folder / f"{time.time_ns():023d}{SUFFIX}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        _sync(folder)
        self.segments.append(Segment(path, 0, began=now))
        return self.segments[-1]

    def _end_segment(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _make_folder(self) -> Path:
        while self._folder is None:
            folder = self._root / f"pod-{uuid.uuid4().hex}"
            folder.mkdir(mode=0o700, parents=True)
            lock = _locked(folder)
            if lock is None:
                continue  # somebody took it for one that was left behind, before we had the lock
            self._folder, self._lock = folder, lock
            self._adopt(folder)
            _sync(folder)
            _sync(self._root)
        return self._folder

    def _adopt(self, ours: Path) -> None:
        for other in sorted(self._root.glob("pod-*")):
            lock = _locked(other) if other != ours else None
            if lock is None:
                continue
            for path in other.glob(f"*{SUFFIX}"):
                target = ours / path.name
                path.rename(target)
                self.segments.append(Segment(target, target.stat().st_size))
            _remove(other)
            os.close(lock)
        self.segments.sort(key=lambda segment: segment.path.name)


def default_folder(redis_url: str, namespace: str) -> Path:
    """Below the user's home; another one for each Redis and namespace, as what lies there is sent to whoever adopts
    it."""
    word = hashlib.sha256(f"{redis_url} {namespace}".encode()).hexdigest()[:16]
    return Path("~/.local/state/tween/spool").expanduser() / word


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _sync(folder: Path) -> None:
    """Have a folder's entries on disk, without which a new file may be gone after a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _locked(folder: Path) -> int | None:
    """The folder's lock as an open file; None where a living process holds it, or the folder has gone."""
    path = folder / "lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), path.stat()):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):  # something else lies there: then it stays
        (folder / "lock").unlink(missing_ok=True)
        folder.rmdir()


def _checked(line: bytes) -> bytes | None:
    checksum, _, payload = line.partition(b" ")
    return payload if checksum == b"%08x" % zlib.crc32(payload) else None
