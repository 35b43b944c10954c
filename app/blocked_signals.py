"""Child processes that the service ends by itself are started with SIGTERM blocked.

systemd (KillMode=control-group) and `kill -- -PGID` send SIGTERM to every process at once, and only the service's
own means something: it drains, and until it ends it needs its children. A blocked signal stays blocked across fork and
exec, whatever handler the program installs; SIGKILL and the end of a pipe are what ends such a child.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sigterm_blocked() -> Iterator[None]:
    """What this thread starts meanwhile never sees a SIGTERM; one that is sent to this thread comes afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
