"""The command line: serve a bank, choose t on labelled texts, or make and serve the demo."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from app import __version__
from app.cli import barrier_command, segments_command, sweep_command
from app.cli.experiment_command import add_experiment
from app.cli.simulate_command import add_simulate
from app.errors import BadBank, BadSettings, TweenError
from app.settings import Settings

if TYPE_CHECKING:
    from app.models.bank import BankSpec
    from app.models.bank_manifest import PublishedBank
    from app.sweep.jobs.sweep_store import SweepStore
    from app.sweep.logits.local_provider import LocalProvider


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""What a disk says that takes no files."""

HELLO = """
The demo will answer on {url} in a moment (documentation: {url}/docs). For example:

  curl {url}/v1/predict -H 'Content-Type: application/json' \\
    -d '{{"texts": "Order intake fell by 8 percent in the third quarter.", "recipe": "finance@0.4"}}'
"""


def main() -> None:
    """Run a command; what the user got wrong is one sentence and exit status 2."""
    options = _parser().parse_args()
    try:
        status = options.run(options)
    except TweenError as error:
        print(f"tween: {error}", file=sys.stderr)
        status = 2
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"tween: {error.filename or 'a file could not be written'}: {error.strerror}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tween", description="Serve the weights between models.")
    parser.add_argument("--version", action="version", version=f"tween {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve a bank over HTTP")
    serve.add_argument("--base", help="folder or hub name (org/name@revision) of the base")
    serve.add_argument(
        "--variant", action="append", default=[], metavar="NAME=SOURCE", help="a variant; may be repeated"
    )
    serve.add_argument("--bank", type=Path, help="a bank file instead of --base and --variant (TWEEN_BANK)")
    serve.add_argument(
        "--from-redis",
        nargs="?",
        const="",
        metavar="FINGERPRINT",
        help="serve blends that others put into REDIS_URL, without any member; by default of the bank served last",
    )
    _listening(serve)
    serve.set_defaults(run=_serve)

    sweep = commands.add_parser("sweep", help="choose t on labelled texts, and say how sure that is")
    sweep_command.add_sweep(sweep)
    sweep.set_defaults(run=lambda options: sweep_command.run_sweep(options, _provider, _logits_folder(), _sweep_store))

    worker = commands.add_parser("sweep-worker", help="run passes of sweeps for services on the same REDIS_URL")
    worker.add_argument("--bank", type=Path, help="the bank file (TWEEN_BANK)")
    worker.add_argument(
        "--idle", type=float, default=30, help="seconds after which a silent worker's part is another's"
    )
    worker.set_defaults(run=_sweep_worker, base=None, variant=[])

    segments = commands.add_parser(
        "segments", help="choose a t, or a variant and its t, for each segment of the traffic"
    )
    segments_command.add_segments(segments)
    segments.set_defaults(run=lambda options: segments_command.run_segments(options, _provider, _logits_folder()))

    barrier = commands.add_parser("barrier", help="tell whether a line between two recipes can be blended at all")
    barrier_command.add_barrier(barrier)
    barrier.set_defaults(run=lambda options: barrier_command.run_barrier(options, _provider, _logits_folder()))

    fetch = commands.add_parser("fetch", help="download what a bank file names, and load nothing")
    fetch.add_argument("--bank", type=Path, help="the bank file (TWEEN_BANK)")
    fetch.set_defaults(run=_fetch)

    add_experiment(commands.add_parser("experiment", help="make, change, start and stop experiments of a service"))
    add_simulate(commands.add_parser("simulate", help="have synthetic customers meet a running experiment"))
    key = commands.add_parser("key", help="make an API key").add_subparsers(required=True, metavar="ACTION")
    new = key.add_parser("new", help="print a new key, once, and the entry for the file of TWEEN_API_KEYS")
    new.add_argument("name", help="whose it is; several keys may have one name")
    new.add_argument("--role", choices=("predict", "manage"), default="predict", help="what it may do (predict)")
    new.set_defaults(run=_new_key)

    demo = commands.add_parser("demo", help="make the demo bank the first time, then serve it")
    demo.add_argument("--rebuild", action="store_true", help="train the demo bank anew")
    demo.add_argument("--only-build", action="store_true", help="do not serve it")
    demo.add_argument("--table", action="store_true", help="print its scores along t instead of serving it")
    _listening(demo)
    demo.set_defaults(run=_demo)
    return parser


def _listening(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", help="address to listen on (TWEEN_HOST, 127.0.0.1)")
    command.add_argument("--port", type=int, help="port to listen on (TWEEN_PORT, 8000)")


def _serve(options: argparse.Namespace) -> int:
    settings = Settings.from_environment(os.environ, host=options.host, port=options.port, bank=options.bank)
    return _run(settings, _spec(options, settings) if options.from_redis is None else _published(options, settings))


def _published(options: argparse.Namespace, settings: Settings) -> PublishedBank:
    from app.models.bank_manifest import PublishedBank

    if options.base or options.variant or options.bank:
        raise BadBank("--from-redis serves what others have built; give no --bank, --base or --variant with it")
    if settings.redis_url is None:
        raise BadSettings("--from-redis needs REDIS_URL, the Redis of the pods that have the members")
    return PublishedBank(options.from_redis or None)


def _spec(options: argparse.Namespace, settings: Settings) -> BankSpec:
    from app.models.bank import BankSpec

    if options.base and options.bank:
        raise BadBank("give either --bank or --base and --variant, not both")
    if options.base:
        return BankSpec.from_options(options.base, options.variant)
    if options.variant:
        raise BadBank("--variant needs --base")
    if settings.bank is None:
        raise BadBank("nothing to serve: give --base FOLDER --variant NAME=FOLDER, or a bank file by --bank")
    return BankSpec.from_toml(settings.bank)


def _new_key(options: argparse.Namespace) -> int:
    from app.api.auth.api_keys import new_key

    key, entry = new_key(options.name, options.role)
    print(f"The key, which is shown this once:\n\n  {key}\n")
    print(f"Its entry in the file of TWEEN_API_KEYS:\n\n{entry}", end="")
    return 0


def _provider(options: argparse.Namespace) -> LocalProvider:
    """The bank for a command that needs logits and serves nobody."""
    import transformers

    from app.bootstrap import storage
    from app.sweep.logits.local_provider import LocalProvider

    settings = Settings.from_environment(os.environ, bank=options.bank)
    if not options.base:
        # Beside a bank file, --variant says where to go and not what to load.
        options = argparse.Namespace(base=None, bank=options.bank, variant=[])
    transformers.logging.set_verbosity_error()
    return LocalProvider.load(_spec(options, settings), *storage(settings), settings.max_tokens)


def _sweep_store() -> SweepStore:
    """Where processes that share a sweep keep their logits."""
    from app.cluster.redis_client import connect
    from app.cluster.redis_url import RedisUrl
    from app.sweep.jobs.sweep_store import SweepStore

    settings = Settings.from_environment(os.environ)
    if settings.redis_url is None:
        raise BadSettings("--share needs REDIS_URL, where the processes meet")
    return SweepStore(connect(RedisUrl.parse(settings.redis_url)), settings.redis_namespace, settings.sweep_ttl_s)


def _sweep_worker(options: argparse.Namespace) -> int:
    import asyncio

    from app.api.telemetry.logs import write_logs

    settings = Settings.from_environment(os.environ, bank=options.bank)
    if settings.redis_url is None:
        raise BadSettings("a worker needs REDIS_URL, the Redis of the services that it works for")
    try:
        from app.sweep.jobs.taskiq_runner import work
    except ImportError:
        raise BadSettings("workers of sweeps need taskiq (pip install 'tween[taskiq]')") from None
    write_logs(settings.log_level, settings.log_format)
    provider = _provider(options)
    asyncio.run(work(provider, settings.redis_url, settings.redis_namespace, settings.sweep_ttl_s, options.idle))
    return 0


def _logits_folder() -> Path:
    from app.demo.build import cache_folder

    return cache_folder() / "logits"


def _fetch(options: argparse.Namespace) -> int:
    """For an init container or a job that fills a volume: what serves can then do without the hub."""
    from app.models.bank import BankSpec
    from app.weights.arena import BASE

    settings = Settings.from_environment(os.environ, bank=options.bank)
    if settings.bank is None:
        raise BadBank("nothing to fetch: give a bank file by --bank")
    spec = BankSpec.from_toml(settings.bank)
    for member, source in {BASE: spec.base, **spec.variants}.items():
        print(member, source.folder(member), flush=True)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from app.demo.build import demo_bank
    from app.demo.table import print_table
    from app.models.bank import BankSpec

    settings = Settings.from_environment(os.environ, host=options.host, port=options.port)
    file = demo_bank(rebuild=options.rebuild)
    if options.table:
        print_table(file)
        return 0
    if options.only_build:
        print(file)
        return 0
    print(HELLO.format(url=f"http://{settings.host}:{settings.port}"), flush=True)
    return _run(settings, BankSpec.from_toml(file))


def _run(settings: Settings, spec: BankSpec | PublishedBank) -> int:
    from app.api.telemetry.logs import write_logs
    from app.main import create_app, create_server

    written = write_logs(settings.log_level, settings.log_format)
    failures: list[Exception] = []

    def on_failure(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(settings, spec, on_failure)
    server = create_server(settings, app)
    server.run()
    if failures:
        written.flush()  # this sentence is the last line
        print(f"tween: {failures[0]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    main()
