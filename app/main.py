"""Builds every object and joins them: the page to read first.

The server listens before the bank is loaded, so that probes can tell a slow start from a dead one; until
then everything but /livez answers 503.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from app import __version__
from app.api import (
    alias_routes,
    bank_routes,
    blend_routes,
    experiment_routes,
    health_routes,
    openapi,
    outcome_routes,
    predict_routes,
    problems,
    report_routes,
    segment_routes,
    spectrum_routes,
    sweep_routes,
)
from app.api.auth import authorization, route_table, same_origin
from app.api.auth.api_keys import ApiKeys
from app.api.auth.rate_limit import RateLimit
from app.api.http_server import deadline_middleware, middleware
from app.api.http_server.drain_server import DrainServer
from app.api.http_server.http_protocol import ConnectionLimits
from app.api.telemetry import metrics, request_metrics, request_text_log
from app.bootstrap import (
    MIB,
    by_commas,
    device_of,
    meanwhile,
    publish_card,
    reach_redis,
    read_bank,
    redis_tier,
    remembered,
    slots_that_fit,
    spare_the_collector,
    start_compute,
    tables_of,
    tokenizer_of,
    tracer_of,
    workers_of,
)
from app.cache.bank_manifest_store import BankManifestStore
from app.cache.memory_tier import MemoryTier
from app.cache.tiers import Ladder
from app.cluster.document_store import DocumentStore
from app.cluster.rate_limit_store import RateLimitStore
from app.cluster.redis_headroom import Headroom
from app.errors import BadSettings, TweenError
from app.experiments.bandit_loop import BanditLoop
from app.experiments.events.event_ledger import EventLedger
from app.experiments.events.ledger_store import LedgerStore
from app.experiments.events.null_ledger import NullLedger
from app.experiments.events.spool import Spool, default_folder
from app.experiments.experiment import read_experiments
from app.experiments.experiment_registry import ExperimentRegistry
from app.experiments.known_experiments import KnownExperiments
from app.experiments.rollouts import LedgerJudge, Rollouts
from app.experiments.sticky_assignment import StickyAssignment
from app.models.bank import BankSpec
from app.models.bank_manifest import PublishedBank
from app.predictor import Predictor
from app.segments.segment_registry import SegmentRegistry
from app.segments.segment_selector import SegmentSelector
from app.serving.aliases import Aliases
from app.serving.background_inference import BackgroundInference
from app.serving.batcher import Batcher
from app.serving.blend_provider import BlendProvider
from app.serving.build_policy import BuildPolicy, measure
from app.serving.engine import Engine
from app.serving.tokenizing import Tokenizing
from app.serving.worker_process import prepare
from app.settings import Settings
from app.sweep.jobs.job_runner import JobRunner, LocalRunner
from app.sweep.jobs.sweep_manager import SweepManager
from app.sweep.jobs.sweep_store import SweepStore
from app.sweep.sweep_spec import BankFacts
from app.weights import geometry
from app.weights.arena import BASE
from app.weights.recipe import Cookbook, Recipe

if TYPE_CHECKING:
    from app.api.telemetry.tracing import Tracer

log = logging.getLogger(__name__)

ROUTERS = [
    module.router
    for module in (
        predict_routes,
        bank_routes,
        blend_routes,
        spectrum_routes,
        alias_routes,
        sweep_routes,
        experiment_routes,
        segment_routes,
        outcome_routes,
        report_routes,
        health_routes,
        metrics,
    )
]
LOOPBACK = ("127.0.0.1", "::1", "localhost")
SERVED = ("predictor", "engine", "sweeps", "experiments", "ledger", "rollouts", "bandits")
"""What `app.state` holds once the bank is loaded."""
WARM_UP = ["The first pass is the slowest, and tells what a token costs on this machine."] * 8

DESCRIPTION = """
Text classification from the weights *between* models: `theta(t) = (1 - t) * base + t * variant`.

Name a recipe wherever you ask: `base`, `finance@0.4`, `finance@0.3+reviews@0.2`, `finance..reviews@0.5`.
"""


def create_app(settings: Settings, spec: BankSpec | PublishedBank, on_failure: Callable[[Exception], None]) -> FastAPI:
    """The application. `on_failure` is called if the bank cannot be loaded, or the device is lost."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.engine = None
        async with AsyncExitStack() as resources:
            if tracer is not None:
                resources.push_async_callback(tracer.close)
            loading = asyncio.create_task(start(app, resources))
            yield
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            for name in SERVED:  # the framework remembers applications; what was loaded shall not live as long
                setattr(app.state, name, None)

    async def start(app: FastAPI, resources: AsyncExitStack) -> None:
        try:
            engine = await build_engine(settings, spec, resources, limits)
            selector = await start_segments(settings, spec, engine, resources)
            app.state.sweeps = await start_sweeps(settings, engine, resources)
            started = await start_experiments(settings, engine, resources)
            app.state.experiments, app.state.ledger, app.state.rollouts, app.state.bandits = started
            app.state.predictor = Predictor(engine, app.state.experiments, selector)
            app.state.engine = engine
            engine.compute.on_loss = on_failure
        except Exception as error:
            if not isinstance(error, TweenError | OSError):
                log.exception("the bank cannot be served")
            on_failure(error)

    limits = RateLimit()
    tracer = tracer_of(settings)
    app = FastAPIOffline(title="Tween", version=__version__, description=DESCRIPTION, lifespan=lifespan, redoc_url=None)
    app.state.engine = app.state.predictor = None
    app.state.draining = False
    app.state.tally = request_metrics.RequestTally()
    problems.install(app)
    openapi.install(app)
    add_middleware(app, settings, limits, tracer)
    app.state.routes = route_table.install(app, ROUTERS)
    return app


def add_middleware(app: FastAPI, settings: Settings, limits: RateLimit, tracer: Tracer | None) -> None:
    """What surrounds every route; the last one added is the outermost."""
    origins = by_commas(settings.cors_origins)
    if settings.log_texts:
        log.warning("TWEEN_LOG_TEXTS: texts of callers stand in the log")
        app.add_middleware(request_text_log.RequestTextLog)
    app.add_middleware(deadline_middleware.DeadlineMiddleware)
    app.add_middleware(middleware.BodyLimit, limit=int(settings.max_body_mib * MIB))
    if settings.api_keys is not None:
        app.add_middleware(authorization.Authorization, keys=ApiKeys(settings.api_keys), limits=limits)
    else:
        if settings.host not in LOOPBACK:
            log.warning("no TWEEN_API_KEYS: whoever reaches %s may do everything", settings.host)
        hosts = [settings.host, *by_commas(settings.allowed_hosts)]
        app.add_middleware(same_origin.SameOrigin, hosts=hosts, origins=origins)
    app.add_middleware(middleware.UnexpectedErrors)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(request_metrics.RequestMetrics, tally=app.state.tally)
    if tracer is not None:
        app.add_middleware(tracer.around)
    app.add_middleware(middleware.RequestId)


def create_server(settings: Settings, app: FastAPI) -> DrainServer:
    """What listens, and knows how to leave."""
    patience = ConnectionLimits(settings.header_s, settings.body_s, settings.write_s, settings.max_header_kib * 1024)
    return DrainServer(app, settings.host, settings.port, settings.drain_s, patience)


async def build_engine(
    settings: Settings, spec: BankSpec | PublishedBank, resources: AsyncExitStack, limits: RateLimit | None = None
) -> Engine:
    """Load the bank and join everything that serves it; what must be closed is given to `resources`."""
    # One thread of this process does what it does of torch's work, and another one tokenizes, in Rust: each thread
    # that ever runs a parallel operation keeps threads of OpenMP for itself, which then get into each other's way.
    torch_thread = resources.enter_context(ThreadPoolExecutor(1, "tween-torch"))
    tokenize_thread = resources.enter_context(ThreadPoolExecutor(1, "tween-tokenize"))

    if workers_of(settings, device_of(settings.device)):
        prepare()
    reached = await reach_redis(settings, resources)
    redis = reached[0].redis if reached else None
    if limits and reached:
        limits.take = RateLimitStore(reached[0], settings.redis_namespace).take
    cards = BankManifestStore(reached[0], settings.redis_namespace, settings.blend_ttl_s) if reached else None
    bank = await read_bank(settings, spec, cards, torch_thread)
    classes = bank.problem_type != "regression"
    cookbook = Cookbook(bank.variants, settings.t_low, settings.t_high, temperatures=classes)
    encoder = tokenizer_of(settings, bank)
    tokenizing = Tokenizing(encoder, tokenize_thread)

    loop = asyncio.get_running_loop()
    slots, asked = await loop.run_in_executor(torch_thread, slots_that_fit, settings, bank)
    compute = await start_compute(settings, bank, slots, torch_thread, resources)
    weights = {BASE: 0.5, bank.variants[0]: 0.5} if bank.variants else {BASE: 1.0}
    costs = await measure(compute, weights if bank.has_members else None, slots.rows[0], encoder.encode(WARM_UP))
    further = [redis_tier(*reached, settings, bank)] if reached else []
    batcher = Batcher(compute, settings.batch_tokens, settings.queue_rows, settings.queue_ms / 1e3)
    ladder = Ladder(MemoryTier(slots.rows, asked), further, callers_wait=lambda: batcher.waiting_rows > 0)
    resources.push_async_callback(ladder.close)
    if not bank.has_members:
        meanwhile(ladder.renew(), resources)
    blends = BlendProvider(bank, ladder, BuildPolicy(costs), compute)
    meanwhile(batcher.run(), resources)
    predictions = remembered(settings, bank, redis, resources) if settings.prediction_cache else None
    default = cookbook.read(settings.default_recipe)
    aliases = Aliases(cookbook, blends, DocumentStore(redis, settings.redis_namespace, "aliases") if redis else None)
    resources.push_async_callback(aliases.close)
    await aliases.start()

    engine = Engine(
        bank,
        cookbook,
        blends,
        compute,
        batcher,
        tokenizing,
        predictions,
        aliases,
        default,
        settings.max_texts,
        BackgroundInference(bank, blends, compute, batcher, tokenizing),
        reached[0] if reached else None,
    )
    if cards and settings.redis_url:  # in a private Redis nobody would look for it
        meanwhile(publish_card(bank, cards, torch_thread), resources)
    spare_the_collector(resources)
    log.info("ready: %d variants on %s, fingerprint %s", len(bank.variants), bank.device, bank.fingerprint[:16])
    return engine


async def start_segments(
    settings: Settings, spec: BankSpec | PublishedBank, engine: Engine, resources: AsyncExitStack
) -> SegmentSelector:
    """What chooses a t for each text, from tables that all pods share."""
    store = DocumentStore(engine.redis.redis, settings.redis_namespace, "segments") if engine.redis else None
    tables = SegmentRegistry(engine.cookbook, engine.bank.fingerprint, tables_of(spec, engine.bank), store)
    resources.push_async_callback(tables.close)
    await tables.start()
    return SegmentSelector(engine.cookbook, tables)


async def start_sweeps(settings: Settings, engine: Engine, resources: AsyncExitStack) -> SweepManager:
    """Have t chosen here, on what callers leave of this pod's time."""
    bank = engine.bank
    products = geometry.products_of(bank.delta_norms, bank.delta_angles)
    store = None
    if engine.redis is not None:
        store = SweepStore(engine.redis, settings.redis_namespace, settings.sweep_ttl_s)

    def name_of(recipe: Recipe) -> str:
        return f"{engine.blends.key(recipe)}-{engine.limits}"

    sweeps = SweepManager(
        BankFacts(bank.labels, list(bank.variants), products, bank.problem_type),
        bank.fingerprint,
        name_of,
        await runner_of(settings, engine, store, name_of, resources),
        store,
        settings.sweep_texts,
        settings.sweeps_waiting,
    )
    resources.push_async_callback(sweeps.close)
    sweeps.start()
    return sweeps


async def runner_of(
    settings: Settings,
    engine: Engine,
    store: SweepStore | None,
    name_of: Callable[[Recipe], str],
    resources: AsyncExitStack,
) -> JobRunner | None:
    """Who runs the passes of sweeps; None leaves sweeps to other pods."""
    if settings.sweep_runner == "local":
        return LocalRunner(engine.errands) if engine.bank.has_members else None
    if settings.redis_url is None or store is None:
        raise BadSettings("TWEEN_SWEEP_RUNNER: taskiq needs REDIS_URL, where pods and workers meet")
    try:
        from app.sweep.jobs.taskiq_runner import TaskiqRunner, broker_of
    except ImportError:
        raise BadSettings("TWEEN_SWEEP_RUNNER: taskiq is not installed (pip install 'tween[taskiq]')") from None
    broker = broker_of(settings.redis_url, settings.redis_namespace)
    resources.push_async_callback(broker.shutdown)
    return TaskiqRunner(broker, store, name_of)


async def start_experiments(
    settings: Settings, engine: Engine, resources: AsyncExitStack
) -> tuple[ExperimentRegistry, EventLedger | NullLedger, Rollouts, BanditLoop]:
    """The experiments, with what the file of them says, who counts what they do, who promotes their arms, and who has
    shares follow outcomes."""
    store = None
    if engine.redis is not None:
        store = DocumentStore(engine.redis.redis, settings.redis_namespace, "experiments")
    sticky = StickyAssignment(engine.redis, settings.redis_namespace)
    experiments = ExperimentRegistry(engine.cookbook, engine.aliases.warmth, store, sticky=sticky)
    resources.push_async_callback(experiments.close)
    await experiments.start()
    if settings.experiments is not None:
        await experiments.apply(read_experiments(settings.experiments), by=f"file {settings.experiments.name}")
    ledger = await open_ledger(settings, engine, experiments, sticky, resources)
    rollouts = Rollouts(experiments, engine.aliases, store, LedgerJudge(experiments, ledger))
    bandits = BanditLoop(experiments, store, ledger.sums)
    meanwhile(rollouts.run(), resources)
    meanwhile(bandits.run(), resources)
    return experiments, ledger, rollouts, bandits


async def open_ledger(
    settings: Settings,
    engine: Engine,
    experiments: ExperimentRegistry,
    sticky: StickyAssignment,
    resources: AsyncExitStack,
) -> EventLedger | NullLedger:
    """Where exposures and outcomes are counted; from here on, what grows with traffic leaves room in Redis."""
    if engine.redis is None:
        return NullLedger()
    folder = settings.spool
    if folder is None and settings.redis_url is not None:
        folder = default_folder(settings.redis_url, settings.redis_namespace)
    elif folder is None:  # what the private Redis has counted ends with this process, too
        folder = Path(resources.enter_context(TemporaryDirectory(prefix="tween-spool-")))
    store = LedgerStore(engine.redis.redis, settings.redis_namespace)
    followed = KnownExperiments(experiments, settings.events_ttl_s)
    headroom = Headroom(engine.redis.redis, lambda: store.size(followed.names(), time.time()))
    meanwhile(headroom.run(), resources)
    sticky.headroom = headroom
    if engine.predictions is not None:
        engine.predictions.headroom = headroom
    ledger = EventLedger(store, Spool(folder, settings.spool_mib * MIB), followed, headroom)
    resources.push_async_callback(ledger.close)
    await ledger.start()
    experiments.ledger = ledger
    return ledger
