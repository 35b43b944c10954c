"""A bank of a base and a variant per domain, fine-tuned from the demo's encoder on a folder of labelled texts.

The folder holds `<domain>/{train,validation,test}.csv` with the columns `text` and `label` (0, 1, 2: negative, neutral,
positive). The domain `general` makes the base; every other one makes a variant of it. What is trained is kept in the
user's cache folder, never beside the code.
"""

from __future__ import annotations

import csv
import hashlib
import random
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from app.demo.build import cache_folder, encoder_folder
from app.demo.corpus import LABELS, Example
from app.demo.training import TrainingPlan, fine_tune
from app.models.checkpoint import read_tokenizer

GENERAL = "general"
PLANS = {GENERAL: TrainingPlan(epochs=3, rate=1e-4, head_rate=1e-3)}
VARIANT_PLAN = TrainingPlan(epochs=3, rate=1e-4, head_rate=1e-4)
MOST_TEXTS = 3000
SEED = 7


def domains_of(data: Path) -> list[str]:
    """The domains in the folder, `general` first."""
    found = sorted(path.parent.name for path in data.glob("*/train.csv"))
    if GENERAL not in found:
        raise SystemExit(f"{data} holds no {GENERAL}/train.csv; domains there: {', '.join(found) or 'none'}")
    return [GENERAL, *(name for name in found if name != GENERAL)]


def read(data: Path, domain: str, split: str) -> list[Example]:
    with (data / domain / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return [Example(row["text"], int(row["label"])) for row in csv.DictReader(file)]


def bank_of(data: Path) -> Path:
    """The bank file; members that are not in the cache yet are trained first."""
    domains = domains_of(data)
    folder = _folder(data)
    for domain in domains:
        train_member(data, domain)
    variants = "".join(f'{name} = "{name}"\n' for name in domains if name != GENERAL)
    (folder / "bank.toml").write_text(f'base = "base"\n\n[variants]\n{variants}', encoding="utf-8")
    return folder / "bank.toml"


def train_member(data: Path, domain: str) -> Path:
    """The folder of the base (of `general`) or of a domain's variant, trained if it is not there."""
    folder = _folder(data)
    done = folder / ("base" if domain == GENERAL else domain)
    if done.is_dir():
        return done
    start = encoder_folder(cache_folder()) if domain == GENERAL else train_member(data, GENERAL)
    examples = read(data, domain, "train")
    random.Random(SEED).shuffle(examples)
    tokenizer = read_tokenizer(domain, start)
    assert tokenizer is not None
    model = _load(start)
    fine_tune(model, tokenizer, examples[:MOST_TEXTS], PLANS.get(domain, VARIANT_PLAN), SEED, lambda: None)
    # Written beside its place and moved there whole, so that an interrupted run leaves no half of a model.
    building = folder / f"building-{domain}"
    shutil.rmtree(building, ignore_errors=True)
    model.save_pretrained(building)
    tokenizer.save_pretrained(building)
    building.rename(done)
    return done


def _folder(data: Path) -> Path:
    """Another one for other texts, other plans or another limit."""
    digest = hashlib.sha256(repr((PLANS, VARIANT_PLAN, MOST_TEXTS, SEED)).encode())
    for domain in domains_of(data):
        digest.update((data / domain / "train.csv").read_bytes())
    return cache_folder() / f"domains-{digest.hexdigest()[:12]}"


def _load(folder: Path) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: index for index, label in enumerate(LABELS)}
    torch.manual_seed(SEED)  # the first head is drawn at random
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    return model
