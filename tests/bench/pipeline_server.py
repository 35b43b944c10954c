"""What one would write without Tween: a transformers pipeline behind FastAPI, its weights fixed when it starts."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

from app.models.bank import BankSpec, load_bank
from app.weights.methods import METHODS


class Body(BaseModel):
    texts: str


def app(folder: str) -> FastAPI:
    classify = pipeline("text-classification", model=folder, top_k=None)
    made = FastAPI()

    @made.get("/readyz")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @made.post("/v1/predict")
    def predict(body: Body) -> dict[str, Any]:
        return {"scores": classify(body.texts)}

    return made


def main(file: str, port: int) -> None:
    bank = load_bank(BankSpec.from_toml(Path(file)), torch.device("cpu"))
    slot = bank.arena.new_vector()
    METHODS["linear"](bank.arena, {"base": 0.6, "finance": 0.4}, slot)
    with tempfile.TemporaryDirectory() as folder:
        model = bank.bind(slot)
        model.save_pretrained(folder, state_dict={n: p.contiguous() for n, p in model.state_dict().items()})
        bank.tokenizer.save_pretrained(folder)
        uvicorn.run(app(folder), port=port, log_level="error")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
