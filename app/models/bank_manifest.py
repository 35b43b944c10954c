"""What a bank is without its weights, as bytes: all that a pod needs to run blends which others have built.

Compressed JSON, and nothing in it is ever executed. It holds a checksum of itself, and one of what the bank's
fingerprint was taken over (weights excepted): a pod whose libraries read the configuration or the tokenizer in
another way refuses the card, because the weights would mean something else there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from app.errors import BadBank
from app.models.architectures import architecture_of
from app.models.bank import Bank
from app.models.configuration import SERVED, config_of
from app.models.network import Network
from app.models.tokenizer import check_token_ids
from app.weights.arena import Arena
from app.weights.layout import Layout

LARGEST = 256 * 1024 * 1024
"""Bytes that a card may have when it is unpacked; the largest tokenizers have about 20 MB."""


@dataclass(frozen=True)
class PublishedBank:
    """A bank whose members other pods have, named by its fingerprint; None is the one that is served now."""

    fingerprint: str | None = None


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def write_card(bank: Bank) -> bytes:
    """The card of a bank."""
    arena, tokenizer = bank.arena, bank.tokenizer
    body = {
        "fingerprint": bank.fingerprint,
        "about": hashlib.sha256(bank.about).hexdigest(),
        "config": json.loads(bank.config.to_json_string(use_diff=False)),
        "labels": bank.labels,
        "shapes": [[place.name, place.shape] for place in arena.layout.places],
        "dtype": str(arena.rows.dtype).removeprefix("torch."),
        "architecture": bank.architecture,
        "ties": bank.network.ties,
        "buffers": {name: _packed(values) for name, values in bank.network.buffers.items()},
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "max_length": tokenizer.model_max_length,
        "pad": tokenizer.pad_token,
        "inputs": tokenizer.model_input_names,
        "side": tokenizer.truncation_side,
        "split": tokenizer.split_special_tokens,
        "sources": bank.sources,
        "variants": bank.variants,
        "norms": bank.delta_norms,
        "angles": bank.delta_angles,
        "warnings": bank.warnings,
    }
    text = json.dumps(body)
    return zlib.compress(json.dumps({"checksum": _digest(text), "body": text}).encode())


def read_card(card: bytes, fingerprint: str, device: torch.device) -> Bank:
    """The bank of that fingerprint, without members, for blends that lie on `device`.

    Raises `BadBank` where the card is damaged, belongs to another bank, or means something else to this program.
    """
    try:
        body = _body(card)
        if body["fingerprint"] != fingerprint:
            raise BadBank(f"the card in Redis is of bank {str(body['fingerprint'])[:16]}, not of {fingerprint[:16]}")
        bank = _bank(body, device)
        same = hashlib.sha256(bank.about).hexdigest() == body["about"]
    except BadBank:
        raise
    except Exception as error:  # what the libraries raise for what they do not understand is theirs to choose
        raise BadBank(
            f"the card of bank {fingerprint[:16]} in Redis is damaged or of another version of Tween; "
            "restart the pod that has the members"
        ) from error
    if not same:
        raise BadBank(
            f"this program reads the card of bank {fingerprint[:16]} in another way than the pod that wrote it; "
            "have both run the same version of Tween and of its libraries"
        )
    return bank


def _body(card: bytes) -> dict[str, Any]:
    unpacking = zlib.decompressobj()
    outer = json.loads(unpacking.decompress(card, LARGEST))
    if _digest(outer["body"]) != outer["checksum"]:
        raise ValueError("the checksum differs")
    body: dict[str, Any] = json.loads(outer["body"])
    return body


def _bank(body: Mapping[str, Any], device: torch.device) -> Bank:
    if body["config"]["model_type"] not in SERVED:
        raise ValueError("an architecture that is not served")
    config = config_of(body["config"])
    shapes = [(name, tuple(shape)) for name, shape in body["shapes"]]
    architecture = architecture_of(config)
    layout = Layout(shapes, architecture.blocks if architecture else ())
    buffers = {name: _unpacked(values) for name, values in body["buffers"].items()}
    tokenizer = _tokenizer(body)
    check_token_ids("base", tokenizer, config)
    return Bank(
        Arena(layout, body["variants"], device, DTYPES[body["dtype"]], members=False),
        Network(config, layout, body["architecture"], body["ties"], buffers),
        tokenizer,
        body["labels"],
        body["sources"],
        body["fingerprint"],
        body["norms"],
        body["angles"],
        body["warnings"],
        {},
    )


def _tokenizer(body: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(body["tokenizer"]),
        model_max_length=body["max_length"],
        model_input_names=body["inputs"],
        truncation_side=body["side"],
        split_special_tokens=body["split"],
    )
    # Set afterwards: given above, it could be added a second time and change what texts become.
    tokenizer.pad_token = body["pad"]
    return tokenizer


def _packed(values: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
    return {"dtype": values.dtype.str, "shape": values.shape, "data": data}


def _unpacked(values: Mapping[str, Any]) -> np.ndarray:
    data = np.frombuffer(bytearray(base64.b64decode(values["data"])), np.dtype(values["dtype"]))
    return data.reshape(values["shape"])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
