from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pico
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from app.errors import BadBank
from app.models.tokenizer import TextTokenizer

MAX_TOKENS = 21  # odd, and room for little


@pytest.fixture
def encoder() -> TextTokenizer:
    return TextTokenizer(pico.tokenizer(), pico.CONFIGS["bert"], max_tokens=512)


def test_rows_are_what_the_tokenizer_makes(encoder: TextTokenizer) -> None:
    texts = ["the refund came late.", "Thanks!"]
    expected = pico.tokenizer()(texts)["input_ids"]
    assert [row.ids for row in encoder.encode(texts)] == expected


def test_a_pair_is_read_together(encoder: TextTokenizer) -> None:
    (row,) = encoder.encode([("is it late?", "yes it is")])
    expected = pico.tokenizer()("is it late?", "yes it is")
    assert row.ids == expected["input_ids"]
    assert row.types == expected["token_type_ids"] and set(row.types) == {0, 1}


def test_truncation_is_done_and_reported(encoder: TextTokenizer) -> None:
    # 64 positions, two of them for the special tokens.
    fits, long = encoder.encode(["late " * 62, "late " * 63])
    assert (len(fits), fits.truncated) == (64, False)
    assert (len(long), long.truncated) == (64, True)
    assert long.ids[-1] == pico.tokenizer().sep_token_id


def roberta() -> PreTrainedTokenizerFast:
    """Special tokens of another kind, and two of them between the texts of a pair."""
    made = pico.tokenizer(types=False)
    made.backend_tokenizer.post_processor = processors.RobertaProcessing(("<sep>", 3), ("<cls>", 2))
    return made


def sentencepiece() -> PreTrainedTokenizerFast:
    """Blanks are part of the words, and a text begins with one."""
    pieces = [*pico.SPECIAL, "▁", *(f"▁{word}" for word in pico.WORDS), *"abcdefghijklmnopqrstuvwxyz0123456789.,!?'"]
    raw = Tokenizer(models.Unigram([(piece, -1.0 - i / 100) for i, piece in enumerate(pieces)], unk_id=1))
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>", pair="<cls> $A <sep> $B <sep>", special_tokens=[("<cls>", 2), ("<sep>", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", model_max_length=64)


def bare() -> PreTrainedTokenizerFast:
    """Without any special token."""
    made = pico.tokenizer(types=False)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return made


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("make", [pico.tokenizer, roberta, sentencepiece, bare])
def test_texts_and_pairs_are_cut_as_transformers_cuts_them(
    make: Callable[[], PreTrainedTokenizerFast], side: str
) -> None:
    tokenizer = make()
    tokenizer.truncation_side = side
    draw = random.Random(1)
    words = [*pico.WORDS, "xyz", "42", "<sep>", "<mask>", "ünï", "🙂", "!"]

    def text() -> str:
        return " ".join(draw.choices(words, k=draw.randrange(1, 30)))

    encoder = TextTokenizer(tokenizer, pico.CONFIGS["bert"], MAX_TOKENS)
    texts = [draw.choice([text(), (text(), text())]) for _ in range(400)]
    cut = 0
    for given, row in zip(texts, encoder.encode(texts), strict=True):
        parts = [given] if isinstance(given, str) else given
        whole = tokenizer(*parts, return_token_type_ids=True)
        expected = tokenizer(*parts, truncation=True, max_length=MAX_TOKENS, return_token_type_ids=True)
        assert (row.ids, row.types) == (expected["input_ids"], expected["token_type_ids"]), given
        assert row.truncated == (len(whole["input_ids"]) > MAX_TOKENS), given
        cut += row.truncated
    assert 100 < cut < 400


def test_special_tokens_in_a_text_are_read_as_the_tokenizer_says(tmp_path: Path) -> None:
    for split in (False, True):
        pico.tokenizer().save_pretrained(tmp_path)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path, split_special_tokens=split)
        (row,) = TextTokenizer(tokenizer, pico.CONFIGS["bert"], 64).encode(["late <sep> order"])
        assert row.ids == tokenizer("late <sep> order")["input_ids"]
        assert (tokenizer.sep_token_id in row.ids[:-1]) is not split


def test_a_text_is_cut_at_characters_before_it_is_tokenized() -> None:
    for side, text in (("right", "late order" + " " * 90 + "thanks"), ("left", "late" + " " * 90 + "order thanks")):
        tokenizer = pico.tokenizer()
        tokenizer.truncation_side = side
        short = TextTokenizer(tokenizer, pico.CONFIGS["bert"], 64, max_characters=100)
        row, pair, whole = short.encode([text, (text, "ok"), text.replace(" " * 90, " " * 84)])
        assert row.truncated and pair.truncated and not whole.truncated
        read = text[:100] if side == "right" else text[-100:]
        assert row.ids == tokenizer(read)["input_ids"] and pair.ids == tokenizer(read, "ok")["input_ids"]
    assert short.limits == "64-100"


def test_a_tokenizer_whose_special_tokens_stand_elsewhere_is_refused() -> None:
    odd = pico.tokenizer()
    odd.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>", pair="<cls> $B <sep> $A <sep>", special_tokens=[("<cls>", 2), ("<sep>", 3)]
    )
    with pytest.raises(BadBank, match="puts its special tokens elsewhere"):
        TextTokenizer(odd, pico.CONFIGS["bert"], 64)


def test_a_pair_of_long_texts_takes_no_more_memory_than_its_texts(encoder: TextTokenizer) -> None:
    """In a process of its own, whose peak is that of this pair: combinations of what is cut off took 1.7 GiB."""
    program = (
        "import pico, resource; from app.models.tokenizer import TextTokenizer;"
        "encoder = TextTokenizer(pico.tokenizer(), pico.CONFIGS['bert'], 512, 10**6);"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "row, = encoder.encode([('late order ' * 4_000, 'order late ' * 4_000)]);"
        "assert len(row) == 64 and row.truncated;"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    path = {"PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=path)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 64 * 1024  # KiB


def test_the_limit_is_the_smallest_of_setting_positions_and_tokenizer() -> None:
    bert, roberta = pico.CONFIGS["bert"], pico.CONFIGS["roberta"]
    assert TextTokenizer(pico.tokenizer(), bert, max_tokens=10).max_tokens == 10
    assert TextTokenizer(pico.tokenizer(), bert, max_tokens=512).max_tokens == 64
    # RoBERTa's positions start after the padding index.
    assert TextTokenizer(pico.tokenizer(), roberta, max_tokens=512).max_tokens == 63


def test_very_long_and_odd_texts_are_read(encoder: TextTokenizer) -> None:
    rows = encoder.encode(["late " * 20_000, "\x00\x01", "🙂 ünïcode", "\n\t late \r\n"])
    assert rows[0].truncated and all(len(row) >= 2 for row in rows)
