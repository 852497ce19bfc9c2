"""The service: hostile input, concurrent requests, memory, the log, shutdown."""

from __future__ import annotations

import base64
import gc
import http.client
import io
import json
import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robust_ood import deployment
from robust_ood.data import EMBEDDED, OODData
from robust_ood.models import DenseNet

for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
    pytest.importorskip(package)
from robust_ood.deployment.service import bind, make_app, make_server, page  # noqa: E402
from robust_ood.deployment.uploads import Limits  # noqa: E402

LIMITS = Limits(body=2**20, pixels=1_000_000, images=8, seconds=2)


class Running:
    """A service in a thread of this process."""

    def __init__(self, guard, log: Path) -> None:
        self.guard = guard
        self.log = log
        self.app = make_app(guard, LIMITS, log)
        self.server = make_server(self.app)
        self.socket = bind("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True
        )
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def request(self, method: str, path: str, body: bytes | None = None, headers=None):
        """Return the status and the body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def post(self, body: bytes, kind: str = "image/png"):
        status, content = self.request("POST", "/predict", body, {"content-type": kind})
        return status, json.loads(content)

    def raw(self, content: bytes, patience: float = 5) -> bytes:
        """Send bytes as they are, and return the beginning of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=patience) as connection:
            connection.sendall(content)
            try:
                return connection.recv(4096)
            except (TimeoutError, ConnectionResetError):
                return b""

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def guard():
    torch.manual_seed(0)
    net = DenseNet(depth=7, growth=2, bottleneck=False, num_classes=10).eval()
    data = OODData(train="digits/train", validation="digits/validation", augmentation="none")
    return deployment.calibrate(net, ["msp"], data)["msp"]


@pytest.fixture(scope="module")
def service(guard, tmp_path_factory) -> Iterator[Running]:
    running = Running(guard, tmp_path_factory.mktemp("service") / "log.jsonl")
    yield running
    running.stop()


def png(pixels=None, **options) -> bytes:
    if pixels is None:
        pixels = EMBEDDED["digits/test"]().images[0]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, options.pop("format", "PNG"), **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def bomb(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG file whose header promises so many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = zlib.compress(rows or bytes(10_000))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def form(*parts: tuple[str, bytes], boundary: str = "x") -> bytes:
    """A multipart body of headers and contents."""
    body = b""
    for header, content in parts:
        disposition = f"--{boundary}\r\nContent-Disposition: form-data; {header}\r\n\r\n"
        body += disposition.encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


FORM = "multipart/form-data; boundary=x"
GOOD = png()
JPEG = png(format="JPEG")
BODIES = {
    "empty": (b"", "image/png"),
    "one byte": (b"x", "image/png"),
    "text": (b"hello", "image/png"),
    "signature alone": (GOOD[:8], "image/png"),
    "header alone": (GOOD[:33], "image/png"),
    "half a PNG": (GOOD[: len(GOOD) // 2], "image/png"),
    "PNG without its last rows": (GOOD[:-100], "image/png"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "image/jpeg"),
    "JPEG signature": (b"\xff\xd8\xff\xe0", "image/jpeg"),
    "broken pixels": (GOOD[:60] + bytes(20) + GOOD[80:], "image/png"),
    "broken checksum": (GOOD[:30] + b"xxxx" + GOOD[34:], "image/png"),
    "100 megapixels": (bomb(10_000, 10_000), "image/png"),
    "4 gigapixels": (bomb(65_535, 65_535), "image/png"),
    "largest header": (bomb(2**31 - 1, 2**31 - 1), "image/png"),
    "no width": (bomb(0, 10), "image/png"),
    "no height": (bomb(10, 0), "image/png"),
    "too few pixels": (bomb(900, 900), "image/png"),
    "strip": (png(np.zeros((1, 5000, 3), np.uint8)), "image/png"),
    "column": (png(np.zeros((5000, 1, 3), np.uint8)), "image/png"),
    "text bomb": (GOOD[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27))) + GOOD[33:], "image/png"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>', "image/svg+xml"),
    "XML with entities": (b'<!DOCTYPE x [<!ENTITY a "a">]><x>&a;</x>', "image/svg+xml"),
    "HTML": (b"<html><script>alert(1)</script>", "image/png"),
    "PDF": (b"%PDF-1.4\n1 0 obj", "image/png"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run", "image/png"),
    "ZIP": (b"PK\x03\x04" + bytes(60), "image/png"),
    "gzip": (zlib.compress(GOOD), "image/png"),
    "pickle": (b"\x80\x04\x95\x1c\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.", "image/png"),
    "NumPy file": (b"\x93NUMPY\x01\0v\0{'descr': '|O'}", "application/octet-stream"),
    "ELF": (b"\x7fELF" + bytes(100), "application/octet-stream"),
    "TIFF": (png(format="TIFF"), "image/tiff"),
    "ICO": (b"\0\0\1\0\1\0" + bytes(40), "image/x-icon"),
    "PPM": (b"P6 10 10 255\n" + bytes(300), "image/x-portable-pixmap"),
    "BMP of negative size": (b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, -9, -9, 1, 24, 0) + bytes(20), "image/bmp"),
    "half a GIF": (png(format="GIF")[:40], "image/gif"),
    "half a WEBP": (b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(10), "image/webp"),
    "body of 2 MiB": (bytes(2**21), "image/png"),
    "JSON": (b'{"image": "/etc/passwd"}', "application/json"),
    "form of text": (b"image=/etc/passwd", "application/x-www-form-urlencoded"),
    "no type": (GOOD, ""),
    "unknown type": (GOOD, "text/plain"),
    "form without boundary": (form(('name="f"; filename="a"', GOOD)), "multipart/form-data"),
    "form with another boundary": (form(('name="f"; filename="a"', GOOD), boundary="y"), FORM),
    "form without files": (form(), FORM),
    "form with a field": (form(('name="path"', b"/etc/passwd")), FORM),
    "form with an empty file": (form(('name="f"; filename="a.png"', b"")), FORM),
    "form cut off": (form(('name="f"; filename="a.png"', GOOD))[:-30], FORM),
    "form of too many files": (form(*[('name="f"; filename="a.png"', GOOD)] * 9), FORM),
    "form of too many fields": (form(*[('name="f"', b"1")] * 99), FORM),
    "form with a bad second file": (form(('name="f"; filename="a"', GOOD), ('name="f"; filename="b"', b"x")), FORM),
    "form with a path": (form(('name="f"; filename="../../etc/passwd"', b"x")), FORM),
    "form with control characters": (form(('name="f"; filename="a\x1b[31m"', b"x"), ('name="f"; filename="b"', b"x")), FORM),
}  # fmt: skip


def test_there_are_fifty_kinds_and_more():
    assert len(BODIES) >= 50


@pytest.mark.parametrize("name", BODIES)
def test_hostile_bodies_get_one_line(name, service):
    body, kind = BODIES[name]
    status, answer = service.post(body, kind)
    assert 400 <= status < 500, answer
    assert list(answer) == ["error"]
    assert answer["error"]
    assert answer["error"].isprintable()
    assert len(answer["error"]) < 500
    assert "Traceback" not in answer["error"]
    status, _ = service.request("GET", "/health")
    assert status == 200


@pytest.mark.parametrize(
    "content",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/x.y\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1e9\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nzz",
        b"GET / HTTP/1.1\r\nhost: x\r\nbig: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
        b"GET /health HTTP/1.1\r\nhost: x\r\nnul\0: x\r\n\r\n",
    ],
    ids=["nonsense", "version", "length", "length 1e9", "chunks", "header", "path", "TLS", "NUL"],
)
def test_hostile_bytes_leave_the_service_up(content, service):
    answer = service.raw(content)
    assert answer == b"" or b" 4" in answer.split(b"\r\n")[0]
    assert service.request("GET", "/health")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("DELETE", "/predict", 405),
        ("POST", "/health", 405),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
    ],
)
def test_other_routes_get_one_line(method, path, status, service):
    code, body = service.request(method, path)
    assert code == status
    assert list(json.loads(body)) == ["error"]


def test_a_body_that_does_not_arrive_is_given_up(service):
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 99\r\n\r\nab"
    assert b" 408 " in service.raw(head, patience=10).split(b"\r\n")[0]


def test_clients_that_go_away_leave_the_service_up(service):
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: {len(GOOD)}\r\n\r\n"
    for _ in range(30):
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(head.encode() + GOOD)
    assert service.post(GOOD)[0] == 200
    batcher = service.app.state.service.batcher
    end = time.monotonic() + 10
    while batcher.unanswered and time.monotonic() < end:
        time.sleep(0.01)
    assert batcher.unanswered == 0


def test_answers_are_the_guards(service):
    pixels = EMBEDDED["digits/test"]().images[:4]
    parts = [
        (f'name="f"; filename="{index}.png"', png(image)) for index, image in enumerate(pixels)
    ]
    status, answer = service.post(form(*parts), FORM)
    assert status == 200
    decision = service.guard(pixels)
    for index, record in enumerate(answer["predictions"]):
        assert record["image"] == f"{index}.png"
        assert record["score"] == pytest.approx(decision.scores[index].item(), abs=1e-4)
        assert record["accepted"] == decision.accepted[index].item()
        assert record["class"] == str(decision.classes[index].item())
        assert "of the 270 calibration images score lower" in record["words"]
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    assert [line["score"] for line in lines[-4:]] == [
        record["score"] for record in answer["predictions"]
    ]


def test_two_hundred_concurrent_requests(service, record_property):
    pixels = EMBEDDED["digits/test"]().images[:40]
    bodies = [png(image) for image in pixels]
    expected = service.guard(pixels).scores

    def ask(index: int) -> tuple[float, bool]:
        start = time.perf_counter()
        status, answer = service.post(bodies[index % 40])
        near = abs(answer["predictions"][0]["score"] - expected[index % 40].item()) < 1e-4
        return time.perf_counter() - start, status == 200 and near

    with ThreadPoolExecutor(200) as threads:
        answers = list(threads.map(ask, range(200)))
    assert all(right for _, right in answers)
    p95 = sorted(seconds for seconds, _ in answers)[189]
    record_property("p95_seconds", p95)
    assert p95 < 20


def test_memory_stays_flat(service):
    def ask(count: int) -> None:
        for _ in range(count):
            assert service.post(GOOD)[0] == 200

    ask(50)
    gc.collect()
    before = resident()
    ask(200)
    gc.collect()
    assert resident() - before < 20 * 2**20


def resident() -> int:
    """Bytes of memory that this process has."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        pytest.skip("memory is read from /proc, which this system does not have")
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_metrics_count(service):
    service.post(GOOD)
    status, body = service.request("GET", "/metrics")
    assert status == 200
    text = body.decode()
    for name in (
        'robust_ood_images_total{decision="accepted"}',
        'robust_ood_requests_total{status="200"}',
        'robust_ood_requests_total{status="413"}',
        "robust_ood_request_seconds_bucket",
        "robust_ood_score_bucket",
        "robust_ood_reject_rate",
        "robust_ood_drift_p_value",
    ):
        assert name in text


def test_the_page_runs_its_own_script_alone(service):
    status, body = service.request("GET", "/")
    assert status == 200
    html, policy = page()
    assert body.decode() == html
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http://" not in html
    assert "https://" not in html


def test_a_dropped_image_is_shown_with_its_decision(service, tab):
    """In headless Chromium, if there is one: the page's script runs under its policy, and puts what
    the service says on the page as text.
    """
    tab.open(f"http://127.0.0.1:{service.port}/", 900, 700)
    drop = """(() => {
        const bytes = Uint8Array.from(atob("%s"), one => one.charCodeAt(0));
        const image = new File([bytes], "<b>name</b>.png", {type: "image/png"});
        const transfer = new DataTransfer();
        transfer.items.add(image);
        const area = document.getElementById("drop");
        area.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, cancelable: true}));
    })()"""
    shown = "document.getElementById('results').innerText"
    for content, expected in ((GOOD, "calibration images score lower"), (GOOD[:50], "decoded")):
        tab.run(drop % base64.b64encode(content).decode())
        end = time.monotonic() + 20
        while expected not in tab.run(shown) and time.monotonic() < end:
            time.sleep(0.05)
        assert expected in tab.run(shown)
    assert "Threshold" in tab.run(shown)
    assert "msp" in tab.run("document.getElementById('guard').innerText")
    assert tab.run("document.images[1].naturalWidth") == 32  # the last one is on top
    assert tab.run("document.documentElement.scrollWidth") <= 900
    bad = ("Runtime.exceptionThrown", "Log.entryAdded")
    entries = [event for event in tab.events if event["method"] in bad]
    # The browser notes the refused upload, and asks for an icon that there is none of.
    said = [event["params"].get("entry", event["params"]) for event in entries]
    assert [one for one in said if "status of 4" not in str(one.get("text", one))] == []


def test_a_busy_service_says_so(guard, tmp_path):
    from dataclasses import replace

    running = Running(guard, tmp_path / "log")
    running.app.state.service.batcher.limits = replace(LIMITS, waiting=0)
    status, answer = running.post(GOOD)
    running.stop()
    assert status == 503
    assert "busy" in answer["error"]


def test_stopping_answers_what_is_in_progress(guard, tmp_path):
    running = Running(guard, tmp_path / "log")
    with ThreadPoolExecutor(20) as threads:
        answers = [threads.submit(running.post, GOOD) for _ in range(20)]
        while not running.app.state.service.batcher.unanswered:
            time.sleep(0.001)
        running.stop()
        statuses = []
        for answer in answers:
            try:
                statuses.append(answer.result()[0])
            except (ConnectionError, http.client.HTTPException):
                statuses.append(0)  # not yet accepted when the service stopped
    assert set(statuses) <= {200, 0}
    assert 200 in statuses
