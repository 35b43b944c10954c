from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import SpoolFull
from app.experiments.events import spool as module
from app.experiments.events.spool import Spool

MIB = 2**20


def everything(spool: Spool) -> list[bytes]:
    found: list[bytes] = []
    while spool.unread:
        found += spool.read(100)
    return found


def file_of(folder: Path) -> Path:
    [file] = folder.glob("pod-*/*.events")
    return file


def test_events_are_read_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MIB)
    events = [json.dumps({"number": number, "text": "ü\n" * number}).encode() for number in range(50)]
    for start in range(0, 50, 7):
        spool.append(events[start : start + 7])
    assert everything(spool) == events
    assert [line for block in spool.everything(spool.segments[0]) for line in block] == events


def test_a_process_adopts_what_an_ended_one_has_left_and_leaves_what_a_living_one_has(tmp_path: Path) -> None:
    living = Spool(tmp_path, MIB)
    living.append([b"of a living one"])
    writing = (
        "from app.experiments.events.spool import *; import sys, os, signal; s = Spool(Path(sys.argv[1]), 10**6)\n"
    )
    for text in ("first", "second"):
        code = f"{writing}s.append([b'{text}']); os.kill(os.getpid(), signal.SIGKILL)"
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parent.parent)
    heir = Spool(tmp_path, MIB)
    heir.open()
    assert everything(heir) == [b"first", b"second"]
    assert len(list(tmp_path.iterdir())) == 2
    heir.close()
    living.close()


def test_a_torn_or_wrong_line_is_left_out_and_those_after_it_are_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MIB)
    spool.append([b"one", b"two", b"three", b"four"])
    spool.close()
    file = file_of(tmp_path)
    whole = bytearray(file.read_bytes())
    whole[whole.index(b"two")] ^= 1
    file.write_bytes(whole[:-3])
    heir = Spool(tmp_path, MIB)
    heir.open()
    heir.append([b"five"])
    assert everything(heir) == [b"one", b"three", b"five"]
    assert heir.torn == 2
    heir.close()


@given(kept=st.integers(0, 40))
def test_a_file_cut_anywhere_gives_the_whole_lines_before(tmp_path_factory: pytest.TempPathFactory, kept: int) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, MIB)
    spool.append([b"one", b"two", b"three"])
    spool.close()
    os.truncate(file_of(folder), kept)
    heir = Spool(folder, MIB)
    heir.open()
    whole = [b"one", b"two", b"three"][: sum(kept >= size for size in (12, 25, 40))]
    found = everything(heir)
    assert found[: len(whole)] == whole and len(found) <= len(whole) + 1  # a line needs no line feed to be whole
    heir.close()


def test_a_full_spool_takes_nothing_more_and_all_again_after_a_deletion(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 100)
    spool.append([b"x" * 50])
    with pytest.raises(SpoolFull, match="MiB"):
        spool.append([b"y" * 50])
    assert everything(spool) == [b"x" * 50]
    assert spool.delete(spool.segments[0], spool.size)
    spool.append([b"y" * 50])
    assert everything(spool) == [b"y" * 50]
    spool.close()


def test_a_segment_that_has_grown_meanwhile_is_not_deleted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MIB)
    spool.append([b"one"])
    size = spool.size
    spool.append([b"two"])
    assert not spool.delete(spool.segments[0], size)
    assert everything(spool) == [b"one", b"two"]
    spool.close()


def test_large_segments_are_followed_by_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 30)
    spool = Spool(tmp_path, MIB)
    for number in range(9):
        spool.append([b"%d" % number * 10])
    assert len(spool.segments) == 5
    assert everything(spool) == [b"%d" % number * 10 for number in range(9)]
    for segment in list(spool.segments):
        assert spool.delete(segment, segment.size)
    spool.close()
    assert not list(tmp_path.iterdir())


def test_a_write_that_the_disk_refuses_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, MIB)
    spool.append([b"before"])

    def refuse(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", refuse)
        with pytest.raises(OSError, match="No space"):
            spool.append([b"refused"])
    spool.append([b"after"])
    assert everything(spool) == [b"before", b"after"]
    spool.close()
