"""A guard's service under load: latencies, and memory over thousands of requests.

    python benchmarks/serving.py --guard guards/aloe --output docs/results/serving.md

200 clients ask at once, each for one image, then one client asks again and again. The service is a
process of its own, whose memory is read from /proc.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from page import table, write_page
from PIL import Image

from robust_ood.data import EMBEDDED

SERVE = "import sys; from robust_ood.cli import main; sys.exit(main())"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guard", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=Path("docs/results/serving.md"))
    options = parser.parse_args()
    command = [sys.executable, "-c", SERVE, "serve", str(options.guard), "--port", "0"]
    service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        port = int(service.stdout.readline().split(":")[-1].strip("/\n"))
        bodies = [png(index) for index in range(40)]
        await_service(port, bodies[0])
        concurrent, errors = ask_together(port, bodies, options.clients)
        alone, memory = ask_in_turn(port, bodies, options.requests, service.pid)
    finally:
        service.terminate()
        service.wait()
    growth = memory[-1] - memory[len(memory) // 10]
    rows = [
        (f"{options.clients} at once", *quantiles(concurrent), errors),
        (f"{options.requests:,} one after the other", *quantiles(alone), 0),
    ]
    lines = [
        *table(("requests", "median, ms", "p95, ms", "largest, ms", "errors"), rows),
        f"Memory of the service after the first tenth of the {options.requests:,} requests: "
        f"{memory[len(memory) // 10]:.0f} MiB; after the last: {memory[-1]:.0f} MiB "
        f"({growth:+.1f} MiB).",
        "",
    ]
    write_page(options.output, "A guard's service under load", lines, "fastapi", "uvicorn")


def png(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(EMBEDDED["digits/test"]().images[index]).save(file, "PNG")
    return file.getvalue()


def ask(port: int, body: bytes) -> float:
    """Return the seconds that an answer took; raise where it is none."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", body, {"content-type": "image/png"})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    if answer.status != 200:
        raise RuntimeError(content)
    return time.perf_counter() - start


def await_service(port: int, body: bytes) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            ask(port, body)
            return
        except ConnectionError:
            time.sleep(0.1)


def ask_together(port: int, bodies: Sequence[bytes], count: int) -> tuple[list[float], int]:
    with ThreadPoolExecutor(count) as threads:
        futures = []
        for index in range(count):
            futures.append(threads.submit(ask, port, bodies[index % len(bodies)]))
    errors = sum(future.exception() is not None for future in futures)
    return [future.result() for future in futures if future.exception() is None], errors


def ask_in_turn(
    port: int, bodies: Sequence[bytes], count: int, process: int
) -> tuple[list[float], list[float]]:
    """Return each answer's seconds, and the service's memory in MiB after each."""
    seconds = []
    memory = []
    for index in range(count):
        seconds.append(ask(port, bodies[index % len(bodies)]))
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        memory.append(pages * 4096 / 2**20)
    return seconds, memory


def quantiles(seconds: Sequence[float]) -> tuple[str, str, str]:
    ordered = sorted(seconds)
    places = (len(ordered) // 2, int(0.95 * len(ordered)) - 1, -1)
    median, p95, largest = (f"{1000 * ordered[place]:.1f}" for place in places)
    return median, p95, largest


if __name__ == "__main__":
    main()
