"""The command line: serve a bank, choose t on labelled texts, or make and serve the demo. A file of `cli` a command."""

from __future__ import annotations

import argparse
import errno
import sys

from app import __version__
from app.cli.barrier_command import add_barrier
from app.cli.demo_command import add_demo
from app.cli.experiment_command import add_experiment
from app.cli.fetch_command import add_fetch
from app.cli.key_command import add_key
from app.cli.segments_command import add_segments
from app.cli.serve_command import add_serve
from app.cli.simulate_command import add_simulate
from app.cli.sweep_command import add_sweep
from app.cli.sweep_worker_command import add_sweep_worker
from app.errors import TweenError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""What a disk says that takes no files."""

COMMANDS = {
    "serve": ("serve a bank over HTTP", add_serve),
    "sweep": ("choose t on labelled texts, and say how sure that is", add_sweep),
    "sweep-worker": ("run passes of sweeps for services on the same REDIS_URL", add_sweep_worker),
    "segments": ("choose a t, or a variant and its t, for each segment of the traffic", add_segments),
    "barrier": ("tell whether a line between two recipes can be blended at all", add_barrier),
    "fetch": ("download what a bank file names, and load nothing", add_fetch),
    "experiment": ("make, change, start and stop experiments of a service", add_experiment),
    "simulate": ("have synthetic customers meet a running experiment", add_simulate),
    "key": ("make an API key", add_key),
    "demo": ("make the demo bank the first time, then serve it", add_demo),
}
"""What each is for, and what adds its options."""


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
    for name, (purpose, add_options) in COMMANDS.items():
        add_options(commands.add_parser(name, help=purpose))
    return parser


if __name__ == "__main__":
    main()
