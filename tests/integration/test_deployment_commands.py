"""The commands around a guard, as users call them, and their mistakes in one line each."""

from __future__ import annotations

import csv
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robust_ood import cli
from robust_ood.data import EMBEDDED

pytest.importorskip("safetensors")
ROOT = Path(__file__).parents[2]
NET = ["--net", "robust_ood.models.DenseNet", "--net.depth", "7", "--net.growth", "2"]
NET += ["--net.bottleneck", "false"]
DATA = ["-c", str(ROOT / "configs/data/digits.yaml"), "--data.validation_ood", "null"]
DATA += ["--data.far", "[{source: photographs/test, count: 50}]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a checkpoint, results of it, a guard with their rates, and images."""
    folder = tmp_path_factory.mktemp("place")
    fit = ["fit", "-c", str(ROOT / "configs/experiments/digits_standard.yaml"), *NET]
    fit += ["--trainer.max_steps", "30", "--trainer.enable_progress_bar", "false"]
    assert cli.train([*fit, "--output", str(folder / "run")]) == 0
    checkpoint = ["--checkpoint", str(folder / "run" / "last.ckpt")]
    score = [*DATA, *checkpoint, "--limit", "20", "--sanity", "false", "--report", "false"]
    score += ["--detectors", "[msp]", "--attacks", "[{name: fgsm, radius: 8/255}]"]
    assert cli.evaluate([*score, "--output", str(folder / "results")]) == 0
    calibrate = [*DATA, *checkpoint, "--detectors", "[msp]", "--results", str(folder / "results")]
    assert cli.calibrate([*calibrate, "--output", str(folder / "guard")]) == 0
    images = folder / "images"
    (images / "below").mkdir(parents=True)
    for index, pixels in enumerate(EMBEDDED["digits/test"]().images[:5]):
        Image.fromarray(pixels).save(images / f"{index}.png")
    Image.fromarray(EMBEDDED["photographs/test"]().images[0]).save(images / "below" / "patch.jpg")
    (images / "broken.png").write_bytes(b"nothing")
    (images / "notes.txt").write_text("no image")
    return folder


def test_a_guard_states_the_attacked_rates_at_its_own_threshold(place):
    content = json.loads((place / "guard" / "guard.json").read_text())
    attacked = [entry for entry in content["measured"] if entry["attack"] != "none"]
    assert {entry["group"] for entry in attacked} == {"id", "far"}
    assert all(entry["norm"] == "Linf" and entry["count"] == 20 for entry in attacked)
    card = (place / "guard" / "README.md").read_text()
    assert "Linf 8/255" in card
    assert content["training"]["method"] == "Standard"
    assert content["class_names"] == list("0123456789")


def test_predict_names_what_it_cannot_read(place, capsys, tmp_path):
    table = tmp_path / "out.csv"
    assert cli.predict([str(place / "guard"), str(place / "images"), "--csv", str(table)]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 7
    assert "1 unreadable" in shown.err
    assert "broken.png" in shown.err
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["image"]).name for row in rows] == [
        "0.png", "1.png", "2.png", "3.png", "4.png", "patch.jpg", "broken.png"
    ]  # fmt: skip
    assert rows[-1]["error"]
    for row in rows[:-1]:
        distance = float(row["score"]) - float(row["threshold"])
        assert float(row["distance"]) == pytest.approx(distance)
        assert (row["accepted"] == "True") == (distance >= 0)


def test_json_lines_do_not_depend_on_the_batch(place, capsys):
    outputs = []
    for size in ("1", "64"):
        arguments = [str(place / "guard"), str(place / "images"), "--json", "--batch_size", size]
        assert cli.predict(arguments) == 0
        outputs.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    for one, many in zip(*outputs, strict=True):
        assert one.get("accepted") == many.get("accepted")
        assert one.get("score", 0) == pytest.approx(many.get("score", 0), abs=1e-4)


def test_fail_on_reject_says_so_by_its_code(place, tmp_path, capsys):
    records = []
    cli.predict([str(place / "guard"), str(place / "images"), "--json"])
    for line in capsys.readouterr().out.splitlines():
        records.append(json.loads(line))
    accepted = [record["image"] for record in records if record.get("accepted")]
    assert accepted
    assert cli.predict([str(place / "guard"), *accepted, "--fail-on-reject"]) == 0
    broken = str(place / "images" / "broken.png")
    assert cli.predict([str(place / "guard"), *accepted, broken, "--fail-on-reject"]) == 1


def test_benchmark_prints_a_line(place, capsys):
    assert cli.predict([str(place / "guard"), "--benchmark"]) == 0
    assert " ms for one image alone" in capsys.readouterr().out


def test_watch_reads_what_predict_writes(place, capsys, tmp_path):
    images = tmp_path / "many"
    images.mkdir()
    for index, pixels in enumerate(EMBEDDED["digits/test"]().images[:40]):
        Image.fromarray(pixels).save(images / f"{index:02}.png")
    assert cli.predict([str(place / "guard"), str(images), "--json"]) == 0
    log = tmp_path / "log"
    log.write_text(capsys.readouterr().out)
    assert cli.watch([str(log), "--guard", str(place / "guard"), "--fail-on-drift"]) == 0
    assert "no drift in 40 images" in capsys.readouterr().out
    noise = np.random.default_rng(0)
    moved = []
    for line in log.read_text().splitlines():
        record = json.loads(line)
        moved.append(json.dumps({**record, "score": record["score"] - 5 - noise.random()}))
    log.write_text("\n".join(moved) + "\n")
    assert cli.watch([str(log), "--guard", str(place / "guard"), "--fail-on-drift"]) == 1
    assert "scores are lower than at calibration" in capsys.readouterr().out


MISTAKES = [
    ("calibrate", "--accept 1.5", "accept", "share in (0, 1)"),
    ("calibrate", "--accept 0.999", "accept", "needs at least 2995 calibration images, got 270"),
    ("calibrate", "--confidence 0", "confidence", "share in (0, 1)"),
    ("calibrate", "--accept many", "accept", "number"),
    ("calibrate", "--detectors [mspp]", "detectors", "'msp'"),
    ("calibrate", "--detectors [mine.Score]", "detectors", "registered"),
    ("calibrate", "--detectors []", "detectors", "none given"),
    ("calibrate", "--detectors [msp,msp]", "detectors", "duplicated"),
    ("calibrate", "--calibrate_on train", "calibrate_on", "validation"),
    ("calibrate", "--data.validation digits/train", "data.validation", "is the training set"),
    ("calibrate", "--results nowhere", "results", "no such file"),
    ("calibrate", "--checkpoint nowhere.ckpt", "checkpoint", "nowhere.ckpt"),
    ("calibrate", "--output {broken}/x", "output", "expected a folder"),
    ("predict", "nowhere {images}", "guard", "holds no guard.json"),
    ("predict", "{guard}", "images", "none given"),
    ("predict", "{guard} nowhere", "images", "no such file or folder"),
    ("predict", "{guard} {empty}", "images", "no image in"),
    ("predict", "{guard} {broken}", "images", "none of them can be read"),
    ("predict", "{guard} {images} --batch_size 0", "batch_size", "images >= 1"),
    ("predict", "{guard} {images} --csv {images}", "csv", "is a folder"),
    ("predict", "{guard} {images} --device tpu", "device", "cpu"),
    ("predict", "{guard} {images} --jsonn", "jsonn", "unknown setting"),
    ("export", "nowhere", "guard", "holds no guard.json"),
    ("export", "{guard} --format pt", "format", "of a guard, torch and onnx"),
    ("export", "{guard} --format tflite", "format", "onnx"),
    ("export", "{guard} --checkpoint x", "checkpoint", "one or the other"),
    ("export", "{guard} --output {broken}", "output", "expected a folder"),
    ("export", "--checkpoint {run} --format onnx --output {empty}", "format", "is for guards"),
    ("export", "--checkpoint {run}", "output", "not given"),
    ("serve", "nowhere", "guard", "holds no guard.json"),
    ("serve", "{guard} --port 99999", "port", "0..65535"),
    ("serve", "{guard} --port {taken}", "port", "cannot listen"),
    ("serve", "{guard} --host nowhere.invalid", "port", "cannot listen"),
    ("serve", "{guard} --max_pixels 0", "max_pixels", ">= 1"),
    ("serve", "{guard} --log {images}", "log", "is a folder"),
    ("watch", "nowhere --guard {guard}", "log", "no such file"),
    ("watch", "{broken} --guard {guard}", "log", "has the scores of 0 images"),
    ("watch", "{empty_log} --guard {guard}", "log", "at least 20 are compared"),
    ("watch", "{log} --guard nowhere", "guard", "holds no guard.json"),
    ("watch", "{log}", "guard", ""),
    ("watch", "{log} --guard {guard} --window 5", "window", ">= 20"),
    ("watch", "{log} --guard {guard} --false_alarm 2", "false_alarm", "(0, 1)"),
    ("watch", "{log} --guard {guard} --plot x.pdf", "plot", ".png or .svg"),
]


@pytest.mark.parametrize(("command", "options", "field", "said"), MISTAKES)
def test_mistakes_are_one_line(command, options, field, said, place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty_log").write_text("")
    (tmp_path / "log").write_text('{"score": 1}\n' * 30)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = options.format(
            guard=place / "guard",
            images=place / "images",
            broken=place / "images" / "broken.png",
            run=place / "run" / "last.ckpt",
            empty=tmp_path / "empty",
            empty_log=tmp_path / "empty_log",
            log=tmp_path / "log",
            taken=taken.getsockname()[1],
        ).split()
        if command == "calibrate":
            checkpoint = ["--checkpoint", str(place / "run" / "last.ckpt")]
            words = [*DATA, *checkpoint, "--output", str(tmp_path / "guard"), *words]
        capsys.readouterr()
        assert cli.main([command, *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert errors[0] == lines[-1]
    assert errors[0].startswith((f"error: {field}:", f"error: {field}.")), errors
    assert said in errors[0]
    assert "Traceback" not in "\n".join(lines)
    assert not (tmp_path / "guard").exists()


def test_results_of_another_network_are_refused(place, capsys, tmp_path):
    other = tmp_path / "results"
    shutil.copytree(place / "results", other)
    content = json.loads((other / "results.json").read_text())
    content["environment"]["networks"] = dict.fromkeys(content["environment"]["networks"], "0" * 32)
    (other / "results.json").write_text(json.dumps(content))
    checkpoint = ["--checkpoint", str(place / "run" / "last.ckpt")]
    arguments = [*DATA, *checkpoint, "--results", str(other), "--output", str(tmp_path / "guard")]
    assert cli.calibrate(arguments) == 2
    assert "no results of this checkpoint's network" in capsys.readouterr().err


def test_serve_answers_and_ends_when_asked_to(place, tmp_path):
    for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        pytest.importorskip(package)
    code = "import sys; from robust_ood.cli import main; sys.exit(main())"
    arguments = ["serve", str(place / "guard"), "--port", "0", "--log", str(tmp_path / "log")]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        address = process.stdout.readline().split()[-1]
        image = (place / "images" / "0.png").read_bytes()
        request = urllib.request.Request(f"{address}predict", image, {"content-type": "image/png"})
        end = time.monotonic() + 60
        while True:
            try:
                answer = json.load(urllib.request.urlopen(request, timeout=30))
                break
            except ConnectionError:
                assert time.monotonic() < end
        assert answer["predictions"][0]["class"] in "0123456789"
    finally:
        process.terminate()
        process.wait(40)
    assert json.loads((tmp_path / "log").read_text())["score"] == answer["predictions"][0]["score"]
