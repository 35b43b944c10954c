"""GET /v1/bank: the base and variants that are loaded, and how far they lie apart."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from app.api.auth.roles import needs
from app.api.bounded_json import BoundedRoute, json_only
from app.api.dependencies import TheEngine
from app.api.schemas import REFUSALS


class VariantReply(BaseModel):
    name: str
    source: str
    delta_norm: float = Field(description="Euclidean length of variant - base")
    angles: dict[str, float] = Field(description="angle to the other variants' deltas, degrees")
    warnings: list[str] = Field(description="what is doubtful about it, a sentence each")


class BankReply(BaseModel):
    base: str = Field(description="where the base came from")
    variants: list[VariantReply]
    labels: list[str]
    architecture: str
    problem_type: str
    parameters: int
    dtype: str
    device: str
    members: bool = Field(description="whether this pod holds the members, or only serves blends that lie in Redis")
    bytes: int = Field(description="size of the arena that holds all members")
    max_tokens: int = Field(description="tokens read of one text at most")
    fingerprint: str = Field(description="SHA-256 over weights, labels, tokenizer and configuration")


router = APIRouter(route_class=BoundedRoute, prefix="/v1", dependencies=[Depends(json_only)], responses=REFUSALS)


@router.get("/bank", tags=["bank"])
@needs("predict")
async def bank(engine: TheEngine) -> BankReply:
    """What is loaded: base, variants, labels, and how far the variants lie from the base and each other."""
    bank = engine.bank
    arena = bank.arena
    variants = [
        VariantReply(
            name=name,
            source=bank.sources[name],
            delta_norm=bank.delta_norms[i],
            angles={other: bank.delta_angles[i][j] for j, other in enumerate(bank.variants) if j != i},
            warnings=bank.warnings.get(name, []),
        )
        for i, name in enumerate(bank.variants)
    ]
    return BankReply(
        base=bank.sources["base"],
        variants=variants,
        labels=bank.labels,
        architecture=bank.architecture,
        problem_type=bank.problem_type,
        parameters=arena.layout.parameters,
        dtype=str(arena.rows.dtype).removeprefix("torch."),
        device=str(bank.device),
        members=bank.has_members,
        bytes=arena.row_bytes * len(arena.rows),
        max_tokens=engine.max_tokens,
        fingerprint=bank.fingerprint,
    )
