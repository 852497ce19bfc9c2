"""Tiny image arrays on disk, a run trained on them by the real command, and a way to call the
commands.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robust_ood import cli

ROOT = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)


def draw_images(count: int, seed: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def draw_classes(count: int, seed: int, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Draw noisy images of four grey levels, with their class."""
    draws = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    noise = draws.normal(0, 12, (count, size, size, 3))
    return np.clip(labels[:, None, None, None] * 60 + 40 + noise, 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="session")
def outputs_of():
    """Wait for processes that work together and return their outputs: `outputs_of(processes,
    timeout)` in seconds.

    None outlives the wait; where one fails, the others, which would wait for it, end at once.
    """

    def finish(processes, timeout):
        with ThreadPoolExecutor(len(processes)) as pool:
            waiting = {
                pool.submit(process.communicate, timeout=timeout): process for process in processes
            }
            try:
                for done in as_completed(waiting):
                    if done.exception() or waiting[done].returncode != 0:
                        break
            finally:
                for process in processes:
                    process.kill()
        outputs = [done.result()[0] for done in waiting]
        assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(
            outputs
        )
        return outputs

    return finish


@pytest.fixture(scope="session")
def arrays(tmp_path_factory) -> Path:
    """A folder of array files: four classes of images, and three sets that are none of them."""
    folder = tmp_path_factory.mktemp("arrays")
    for part, count, seed in (("train", 64, 0), ("validation", 16, 1), ("test", 24, 2)):
        images, labels = draw_classes(count, seed)
        np.savez(folder / f"{part}.npz", images=images, labels=labels)
    np.savez(folder / "outliers.npz", images=draw_images(48, 3))
    np.savez(folder / "near.npz", images=draw_images(20, 4) // 2 + 64)
    np.savez(folder / "far.npz", images=draw_images(20, 5))
    np.save(folder / "stripes.npy", np.repeat(draw_images(20, 6)[:, :, :1], 16, axis=2))
    return folder


@pytest.fixture(scope="session")
def experiment(arrays, tmp_path_factory) -> Path:
    """A config of a small ALOE run on the arrays."""
    path = tmp_path_factory.mktemp("experiment") / "tiny.yaml"
    path.write_text(
        f"""\
include: [{ROOT}/configs/models/wrn_10_1.yaml, {ROOT}/configs/methods/aloe.yaml]
experiment: tiny
trainer: {{accelerator: cpu, devices: 1, max_epochs: 2, enable_progress_bar: false, log_every_n_steps: 1}}
net: {{init_args: {{num_classes: 4}}}}
model: {{init_args: {{optimization: {{learning_rate: 0.05}}}}}}
data:
  root: {arrays}
  train: train.npz
  validation: validation.npz
  test: test.npz
  outliers: outliers.npz
  near: [near.npz]
  far: [far.npz, stripes]
  num_classes: 4
  batch_size: 16
  outlier_batch_size: 16
"""
    )
    return path


@pytest.fixture(scope="session")
def grid(experiment, tmp_path_factory) -> Path:
    """A config of a small evaluation on the arrays; the data of the experiment; it ends without a
    report.
    """
    text = experiment.read_text()
    path = tmp_path_factory.mktemp("grid") / "grid.yaml"
    rest = "detectors: [msp]\nattacks: [{name: pgd, radius: 8/255, steps: 2}]\nfigures: false\nreport: false\n"
    path.write_text(text[text.index("data:") :] + rest)
    return path


@pytest.fixture(scope="session")
def trained_run(experiment, tmp_path_factory) -> Path:
    """The folder of a finished run. Only to be read; `shutil.copytree` it to change it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert cli.train(["fit", "-c", str(experiment), "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def own_run(trained_run, tmp_path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(trained_run, tmp_path / "tiny"))


class Tab:
    """A tab of a headless browser, spoken to by its debugging protocol over pipes; keeps every
    event.
    """

    def __init__(self, process: subprocess.Popen[bytes], reading: int, writing: int) -> None:
        self.process, self.writing = process, writing
        self.answers = os.fdopen(reading, "rb", buffering=0)
        self.numbers, self.rest, self.session = itertools.count(1), b"", None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **settings: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": settings}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def next(self) -> dict[str, Any]:
        """Return the next message, kept where it is an event."""
        while b"\0" not in self.rest:
            part = os.read(self.answers.fileno(), 2**20)
            assert part, "the browser ended"
            self.rest += part
        text, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def open(
        self,
        page: Path | str,
        width: int,
        height: int,
        colours: str = "light",
        *,
        phone: bool = False,
    ) -> None:
        """Load a page at a size of the window and with the system's preference of colours."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": colours}],
        )
        self.events.clear()
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.next()

    def run(self, script: str) -> Any:
        """Return the value of an expression."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, path: Path, height: int = 0) -> Path:
        """Save what is shown, or the page down to a height."""
        clip = {
            "x": 0,
            "y": 0,
            "width": self.run("innerWidth"),
            "height": height or self.run("innerHeight"),
            "scale": 1,
        }
        taken = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))
        return path


@pytest.fixture(scope="session")
def tab(tmp_path_factory) -> Iterator[Tab]:
    """A tab of a headless browser; skips where there is none."""
    if BROWSER is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    profile = tmp_path_factory.mktemp("profile")
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()

    def place() -> None:  # the browser reads commands from 3 and writes to 4
        first, second = os.dup(to_read), os.dup(from_write)
        os.dup2(first, 3)
        os.dup2(second, 4)

    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
    ]
    process = subprocess.Popen(
        [str(BROWSER), *flags, "--remote-debugging-pipe", f"--user-data-dir={profile}"],
        preexec_fn=place,
        pass_fds=(3, 4),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    try:
        yield Tab(process, from_read, to_write)
    finally:
        process.kill()
        process.wait()
        os.close(to_write)
