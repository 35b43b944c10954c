"""What TensorBoard and Weights & Biases read back is what a sweep found; nothing of the machine is with it."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic import LINE, Synthetic, drawn

from app.errors import BadData
from app.sweep.build_result import findings
from app.sweep.logits.logit_cache import LogitCache, MemoryLogitStore
from app.sweep.one_line import sweep
from app.sweep.report import trackers
from app.sweep.sweep_result import SweepResult
from app.sweep.sweep_spec import SweepSpec


@pytest.fixture(scope="module")
def found() -> SweepResult:
    provider = Synthetic()
    targets = [drawn(provider, 60, t=0.6, temperature=1.3, seed=seed, name=f"set{seed}") for seed in (1, 2)]
    passes = LogitCache(provider, MemoryLogitStore())
    spec = SweepSpec(LINE, targets, [1.0, 1.0], 4.0, draws=100)
    return findings(spec, *sweep(spec, passes), passes, provider.labels)


def test_tensorboard_reads_the_curve_and_the_answer(found: SweepResult, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers.to_tensorboard(found, tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert scalars["temperature"] == [(round(100 * point.t), pytest.approx(point.temperature)) for point in found.curve]
    for data in ("set1", "set2", "all targets"):
        for end in ("", "/low", "/high"):
            expected = [getattr(point.data[data]["loss"], end[1:] or "value") for point in found.curve]
            assert [value for _, value in scalars[f"{data}/loss{end}"]] == pytest.approx(expected)
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    assert texts["recipe/text_summary"] == found.best.recipe and texts["sentence/text_summary"] == found.sentence


def records(path: Path) -> Iterator[Any]:
    """Records of a .wandb file: after 7 bytes, the log format of LevelDB (blocks of 32 KiB; checksum, length, type)."""
    from wandb.proto import wandb_internal_pb2

    data, block, place, parts = path.read_bytes(), 32 * 1024, 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_an_offline_run_holds_the_curve_and_the_answer_and_nothing_of_the_machine(
    found: SweepResult, tmp_path: Path
) -> None:
    trackers.to_wandb(found, tmp_path / "runs")
    (path,) = (tmp_path / "runs" / "wandb").glob("offline-run-*/*.wandb")
    history: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    hosts: set[str] = set()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            items = record.history.item
            history.append({"".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
        elif kind == "run":
            hosts.add(record.run.host)
        elif kind == "summary":
            summary |= {"".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.summary.update}
    assert [row["t"] for row in history] == pytest.approx([point.t for point in found.curve])
    losses = [point.data["set1"]["loss"].value for point in found.curve]
    assert [row["set1/loss"] for row in history] == pytest.approx(losses)
    assert summary["recipe"] == found.best.recipe and summary["best_t"] == found.best.t
    files = {file.name for file in path.parent.rglob("*") if file.is_file()}
    assert not files & {"requirements.txt", "wandb-metadata.json"}
    assert hosts == {""} and str(Path.cwd()).encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("module", "write", "sentence"),
    [
        ("torch.utils.tensorboard", trackers.to_tensorboard, r"pip install 'tween\[tensorboard\]'"),
        ("wandb", trackers.to_wandb, r"pip install 'tween\[wandb\]'"),
    ],
)
def test_without_the_extra_one_sentence_says_what_is_missing(
    found: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, write: Any, sentence: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadData, match=sentence):
        write(found, tmp_path)
