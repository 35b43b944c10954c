from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from app.errors import BadData
from app.sweep.data.dataset import Columns, read_dataset

LABELS = ["negative", "neutral", "positive"]
ROWS = [(f"text number {i}", LABELS[i % 3]) for i in range(30)]


def csv_file(folder: Path, rows: list[tuple[str, ...]], header: str = "text,label", name: str = "own.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


def test_csv_json_lines_and_parquet_give_the_same_data(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"text": t, "label": n}) + "\n\n" for t, n in ROWS))
    parquet.write_table(
        pyarrow.table({"text": [t for t, _ in ROWS], "label": [n for _, n in ROWS]}), tmp_path / "own.parquet"
    )
    made = [
        read_dataset(path, LABELS)
        for path in (csv_file(tmp_path, ROWS), tmp_path / "own.jsonl", tmp_path / "own.parquet")
    ]
    assert {data.digest for data in made} == {made[0].digest}
    assert made[0].name == "own" and made[0].texts[4] == "text number 4" and made[0].truth.tolist()[:4] == [0, 1, 2, 0]


@pytest.mark.parametrize("header", ["Sentence;Sentiment", "\ufeffTEXT;Label", "tweet\tgold"])
def test_columns_are_found_in_any_case_and_behind_other_separators(tmp_path: Path, header: str) -> None:
    separator = "\t" if "\t" in header else ";"
    path = tmp_path / "own.csv"
    path.write_text("\n".join([header, *(separator.join(row) for row in ROWS)]), encoding="utf-8")
    assert len(read_dataset(path, LABELS)) == 30


def test_labels_may_be_names_in_any_case_or_numbers(tmp_path: Path) -> None:
    rows = [(f"text {i}", ["NEGATIVE", "1", "2.0", " Positive "][i % 4]) for i in range(40)]
    assert read_dataset(csv_file(tmp_path, rows), LABELS).truth[:4].tolist() == [0, 1, 2, 2]


def test_a_quoted_text_may_span_lines_and_line_numbers_still_hold(tmp_path: Path) -> None:
    rows = [('"two\nlines"', "neutral"), *ROWS, ("the last", "angry")]
    with pytest.raises(
        BadData,
        match=r"own, line 34, column 'label': the label 'angry' is none of the bank's; labels: negative, neutral",
    ):
        read_dataset(csv_file(tmp_path, rows), LABELS)


def test_texts_with_the_same_words_are_one_group(tmp_path: Path) -> None:
    data = read_dataset(csv_file(tmp_path, [*ROWS, ROWS[3], ROWS[3]]), LABELS)
    assert len(data) == 32 and data.repeated == 2
    assert data.groups[3] == data.groups[30] == data.groups[31] and len(set(data.groups.tolist())) == 30


def test_group_segment_and_time_columns_are_read_and_can_be_left_out(tmp_path: Path) -> None:
    rows = [
        (t, n, f"user{i % 7}", "web" if i % 2 else "phone", f"2026-11-{30 - i:02}") for i, (t, n) in enumerate(ROWS)
    ]
    path = csv_file(tmp_path, rows, "text,label,user_id,channel,date")
    data = read_dataset(path, LABELS)
    assert data.columns == {"text": "text", "label": "label", "group": "user_id", "segment": "channel", "time": "date"}
    assert data.groups[0] == data.groups[7] and data.segment_names == ("phone", "web")
    assert data.order is not None and data.order.tolist() == list(range(29, -1, -1))
    plain = read_dataset(path, LABELS, Columns(group="-", segment="-", time="-"))
    assert plain.segments is None and plain.order is None and len(set(plain.groups.tolist())) == 30


def test_times_of_a_parquet_file_are_times(tmp_path: Path) -> None:
    table = {
        "text": [t for t, _ in ROWS],
        "label": [n for _, n in ROWS],
        "time": [datetime(2026, 1, 1 + i) for i in range(30)],
    }
    parquet.write_table(pyarrow.table(table), tmp_path / "own.parquet")
    order = read_dataset(tmp_path / "own.parquet", LABELS).order
    assert order is not None and np.array_equal(order, np.arange(30))


def test_the_digest_follows_texts_labels_and_groups(tmp_path: Path) -> None:
    one = read_dataset(csv_file(tmp_path, ROWS), LABELS).digest
    assert read_dataset(csv_file(tmp_path, ROWS, name="other.csv"), LABELS).digest == one
    relabelled = [("text number 0", "positive"), *ROWS[1:]]
    assert read_dataset(csv_file(tmp_path, relabelled), LABELS).digest != one
    assert read_dataset(csv_file(tmp_path, ROWS[::-1]), LABELS).digest != one


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


MANY = "".join(f"text {i},neutral\n" for i in range(25))
REFUSED = [
    ("none.txt", "x", "cannot tell what it is; its name should end in one of .csv"),
    ("a.csv", "", "it holds no texts"),
    ("a.csv", "text,label\n", "it holds no texts"),
    ("a.csv", "words,label\nfine,1\n", "cannot tell which column holds the text; name it. Columns: words, label"),
    ("a.csv", "text,mood\nfine,1\n", "cannot tell which column holds the label; name it"),
    ("a.csv", "text,label\nfine,1\n  ,2\n", "a, line 3, column 'text': the text is empty"),
    (
        "a.csv",
        "text,label\nfine,\n",
        "line 2, column 'label': there is no label; labels: negative, neutral, positive (or",
    ),
    ("a.csv", "text,label\nfine,3\n", "line 2, column 'label': the label '3' is none of the bank's"),
    ("a.csv", "text,label\nfine,1,more\n", "a.csv, line 2: more fields than the header names"),
    ("a.csv", "text,label\nfine,1\nbad,0\n", "2 different texts; at least 20 are needed, 200 are advised"),
    ("a.csv", "text,label\n" + MANY, "every label is 'neutral'; texts of at least two labels are needed"),
    (
        "a.csv",
        "text,label,time\nfine,1,soon\n" + MANY.replace("neutral", "0,7"),
        "line 2, column 'time': 'soon' is no time",
    ),
    ("a.csv", b"text,label\n\xff\xfe,1\n", "a.csv is not UTF-8"),
    ("a.jsonl", '{"text": "fine", "label": 1}\n[1]\n', "a.jsonl, line 2: every line must be an object"),
    (
        "a.jsonl",
        '{"text": "fine", "label": 1}\n{"text": "bad"}\n',
        "a, line 2: there is no 'label', which other rows have",
    ),
    ("a.jsonl", "{oops\n", "a.jsonl, line 1: not JSON"),
    ("a.parquet", "not parquet", "a.parquet is not a sound parquet file"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), REFUSED, ids=[case[2][:40] for case in REFUSED])
def test_what_cannot_be_judged_is_one_sentence(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    with pytest.raises(BadData) as refusal:
        read_dataset(written(tmp_path, name, content), LABELS)
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_column_that_is_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no column 'body'; columns: text, label"):
        read_dataset(csv_file(tmp_path, ROWS), LABELS, Columns(text="body"))


def test_rows_can_be_chosen_by_a_value(tmp_path: Path) -> None:
    path = csv_file(
        tmp_path, [(t, n, "test" if i < 24 else "train") for i, (t, n) in enumerate(ROWS)], "text,label,split"
    )
    assert len(read_dataset(path, LABELS, Columns(where=("split", "test")))) == 24
    with pytest.raises(BadData, match="no row has 'dev' in column 'split'; there are 'test', 'train'"):
        read_dataset(path, LABELS, Columns(where=("split", "dev")))
    with pytest.raises(BadData, match="no column 'part'; columns: text, label, split"):
        read_dataset(path, LABELS, Columns(where=("part", "test")))


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="there is no file"):
        read_dataset(tmp_path / "gone.csv", LABELS)


def test_texts_without_labels_are_read_where_none_are_needed(tmp_path: Path) -> None:
    path = csv_file(tmp_path, [(t,) for t, _ in ROWS], "text")
    assert read_dataset(path, LABELS, labelled=False).labels is None
