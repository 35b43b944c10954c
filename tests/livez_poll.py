"""Asks a service's /livez every 50 ms, from a process that does nothing else, and prints how long each reply took.

    python tests/livez_poll.py PORT PID

A line for each reply: seconds since the epoch, seconds that it took, and of these the seconds for which the service's
event loop (the main thread of PID), or this process, could have run and had no core. Linux counts them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from socket import create_connection

SECONDS = 0.05
REQUEST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


def waited_for_cores(pid: int) -> float:
    files = (Path(f"/proc/{pid}/task/{pid}/schedstat"), Path("/proc/self/schedstat"))
    return sum(int(file.read_text().split()[1]) for file in files) / 1e9


def main() -> None:
    port, pid = int(sys.argv[1]), int(sys.argv[2])
    with create_connection(("127.0.0.1", port), timeout=60) as service:
        while True:
            waited, asked = waited_for_cores(pid), time.perf_counter()
            service.sendall(REQUEST)
            assert service.recv(65536).startswith(b"HTTP/1.1 200")
            took = time.perf_counter() - asked
            print(time.time(), took, min(took, waited_for_cores(pid) - waited), flush=True)
            time.sleep(SECONDS)


if __name__ == "__main__":
    main()
