"""Pods without a service around them: Redis tiers, each with connections of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import torch

from app.cache.bulk_transfer import BulkTransfer
from app.cache.redis_tier import BlendFormat, RedisTier
from app.cache.sharing_rule import SharingRule
from app.cluster.redis_client import connect
from app.cluster.redis_url import RedisUrl

P = 50_000
KEY = "0" * 32
KIND = "linear 2"
VECTOR = torch.arange(P, dtype=torch.float32)
SHAPE = BlendFormat("f" * 64, "a" * 64, "float32", P * 4)
CHUNK = 80_000
"""Three chunks for 200,000 bytes, the last one shorter."""
PREFIX = SHAPE.prefix("tween", CHUNK)


@asynccontextmanager
async def pod(
    url: str, shape: BlendFormat = SHAPE, rule: SharingRule | None = None, limit: int = 10**9, chunk: int = CHUNK
) -> AsyncIterator[RedisTier]:
    address = RedisUrl.parse(url)
    client, chunks = connect(address), BulkTransfer(address, chunk)
    try:
        yield RedisTier(client, chunks, shape, rule or SharingRule("always"), "tween", 60, limit)
    finally:
        await client.aclose()
        await chunks.aclose()


def with_pods(
    url: str,
    scenario: Callable[..., Awaitable[None]],
    count: int = 1,
    rule: SharingRule | None = None,
    **options: object,
) -> None:
    """Run a scenario that takes so many tiers; each has a rule of its own unless one is given."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            pods = [await stack.enter_async_context(pod(url, rule=rule, **options)) for _ in range(count)]  # type: ignore[arg-type]
            await scenario(*pods)

    asyncio.run(main())


async def write(tier: RedisTier, key: str = KEY) -> bool:
    """Whether the blend was written, and was not there."""
    return bool(await tier.put(key, "finance@0.4", VECTOR, lambda: False))


async def fetched(tier: RedisTier, key: str = KEY) -> torch.Tensor | None:
    """The blend, or None."""
    out = torch.full((P,), torch.nan)
    return out if await tier.get(key, KIND, out) else None


def name(part: str, key: str = KEY) -> str:
    return f"{PREFIX}:{{{key}}}:{part}"
