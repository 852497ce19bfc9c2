"""`--certificates`: bounds and attacks by one command, resumable, shared, alarmed, reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robust_ood import cli
from robust_ood.data import OODData
from robust_ood.detectors import Detector, build_all
from robust_ood.evaluation import Results, evaluate
from robust_ood.evaluation.sanity import check_bracket
from robust_ood.models import ConvNet
from robust_ood.reporting.brackets import settled

ROOT = Path(__file__).parents[2]
SMOOTHING = {"name": "smoothing", "sigma": 0.25, "radius": [0.05, 0.1], "draws": 100, "steps": 2}
INTERVAL = {"name": "interval", "radius": "1/255"}


def network():
    torch.manual_seed(0)
    return ConvNet((4,), (4,), 2, (8,), 8).eval()


def data():
    return OODData(
        "digits-0-7/train",
        test="digits-0-7/test",
        near=["digits-0-7/held-out"],
        far=["photographs/test"],
        num_classes=8,
        augmentation="none",
    )


def evaluated(certificates, names=("msp", "energy"), **settings):
    net = network()
    detectors = dict(build_all(list(names), net))
    return evaluate(
        net,
        detectors=detectors,
        attacks={},
        data=data(),
        limit=settings.pop("limit", 8),
        sanity=False,
        intervals=0,
        certificates=certificates,
        **settings,
    )


def essence(results):
    return [replace(row, seconds=0.0) for row in results.rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("certified")


@pytest.fixture(scope="module")
def results(folder):
    return evaluated([SMOOTHING, INTERVAL], folder=folder)


def test_every_certificate_has_a_bracket_in_order(results):
    assert results.complete
    assert not results.failures
    bracketed = [row for row in results.rows if row.lower is not None]
    clean = {}
    for row in results.rows:
        if row.attacked == "none":
            clean[row.detector, row.ood] = row
    # Two sets and two means, three sides, two detectors, two radii of L2 and one of Linf.
    assert len(bracketed) == 4 * 3 * 2 * (2 + 1)
    for row in bracketed:
        assert 0 <= row.lower <= row.auroc + 1e-6
        assert row.auroc <= clean[row.detector, row.ood].auroc + 1e-6
        assert row.fpr95_upper >= row.fpr95
        assert row.detection_error_upper >= row.detection_error - 1e-9
    assert not [line for line in results.warnings if "broken bracket" in line]


def test_rows_say_of_what_the_bound_is(results):
    for row in results.rows:
        smoothed = "smoothed 0.25" in row.detector
        if row.lower is None:
            assert row.bound == "none"
        elif smoothed:
            assert (row.bound, row.norm, row.sigma, row.draws) == ("certified", "L2", 0.25, 100)
            assert row.alpha == pytest.approx(0.001)
        else:
            assert (row.bound, row.norm, row.alpha) == ("guaranteed", "Linf", 0.0)


def test_bounds_fall_with_the_radius_and_with_more_sides(results):
    lower = {}
    for row in results.rows:
        if row.lower is not None and "smoothed" in row.detector:
            lower[row.detector, row.ood, row.radius, row.attacked] = row.lower
    for (detector, ood, radius, attacked), value in lower.items():
        assert lower[detector, ood, 0.1, attacked] <= lower[detector, ood, 0.05, attacked]
        assert lower[detector, ood, radius, "both"] <= value


def test_the_same_folder_computes_nothing_again(results, folder, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("bounds are computed again")

    monkeypatch.setattr("robust_ood.evaluation.certified.score_bounds", refuse)
    again = evaluated([SMOOTHING, INTERVAL], folder=folder)
    assert not again.failures
    assert essence(again) == essence(results)


class Random(Detector):
    def forward(self, images):
        return torch.rand(len(images))


def test_a_bound_above_an_attack_is_an_alarm(results):
    row = next(row for row in results.rows if row.lower is not None)
    (line,) = check_bracket(replace(row, auroc=0.1, lower=0.9), None)
    assert "broken bracket" in line
    (line,) = check_bracket(replace(row, auroc=0.9, lower=0.1), replace(row, auroc=0.2))
    assert "broken bracket" in line
    assert not check_bracket(replace(row, lower=None), None)


def test_the_sentence_divides_all_pairs(results):
    row = next(row for row in results.rows if row.bound == "certified")
    words = settled(replace(row, lower=0.5, auroc=0.75))
    assert "50.0 % of the pairs are certified" in words
    assert "25.0 % are proved to lose it" in words
    assert "25.0 % are open" in words
    assert "0.999" in words


def test_the_report_shows_brackets(results, folder):
    results.write(folder)
    assert cli.main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Certified and attacked" in page
    assert "of the pairs are guaranteed to keep their order" in page
    assert list((folder / "report_files").glob("brackets-*.png"))


def test_files_of_the_first_schema_are_still_reported(tmp_path):
    old = (ROOT / "tests" / "fixtures" / "results_schema_1.json").read_text(encoding="utf-8")
    assert json.loads(old)["schema"] == 1
    (tmp_path / "results.json").write_text(old, encoding="utf-8")
    read = Results.read(tmp_path)
    assert all(row.lower is None and row.bound == "none" for row in read.rows)
    assert cli.main(["report", str(tmp_path)]) == 0
    assert "Certified and attacked" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def arguments(checkpoint, output, certificates):
    return [
        *("--checkpoint", str(checkpoint), "--output", str(output), "--limit", "6"),
        *("--data.train", "digits-0-7/train", "--data.test", "digits-0-7/test"),
        *("--data.far", "[photographs/test]", "--data.num_classes", "8"),
        *("--net", "robust_ood.models.ConvNet", "--net.channels", "[4]", "--net.strides", "[4]"),
        *("--net.pooling", "2", "--net.hidden", "[8]", "--net.num_classes", "8"),
        *("--attacks", "[]", "--sanity", "false", "--intervals", "0", "--figures", "false"),
        *("--report", "false", "--chunk", "3", "--certificates", json.dumps(certificates)),
    ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net.pt"
    torch.save(network().state_dict(), path)
    return path


MISTAKES = {
    "sigma": ({**SMOOTHING, "sigma": 0}, "sigma: expected a standard deviation > 0"),
    "draws": ({**SMOOTHING, "draws": 5}, "or more are needed"),
    "norm": ({**SMOOTHING, "norm": "Linf"}, "covered by the L2 radius"),
    "radius": ({**SMOOTHING, "radius": -1}, "radius: -1"),
    "no radius": ({"name": "smoothing", "sigma": 0.25}, "radius"),
    "name": ({"name": "smothing", "sigma": 0.25, "radius": 0.1}, "smoothing"),
    "setting": ({**SMOOTHING, "sigmas": 1}, "did you mean 'sigma'"),
    "alpha": ({**SMOOTHING, "alpha": 1.5}, "alpha"),
}


@pytest.mark.parametrize(("certificate", "words"), MISTAKES.values(), ids=list(MISTAKES))
def test_mistakes_end_with_one_line(capsys, tmp_path, checkpoint, certificate, words):
    assert cli.main(["evaluate", *arguments(checkpoint, tmp_path / "out", [certificate])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_random_detector_is_refused():
    net = network()
    with pytest.raises(ValueError, match="random itself"):
        evaluate(
            net,
            detectors={"luck": Random()},
            attacks={},
            data=data(),
            limit=4,
            certificates=[SMOOTHING],
        )


def test_two_processes_share_the_draws(tmp_path, checkpoint, capsys):
    """Each of two commands at once writes cells of bounds, none is written twice."""
    certificate = {**SMOOTHING, "draws": 2000}
    assert cli.main(["evaluate", *arguments(checkpoint, tmp_path / "whole", [certificate])]) == 0
    capsys.readouterr()
    shared = tmp_path / "shared"
    command = [sys.executable, "-c", COUNTING, *arguments(checkpoint, shared, [certificate])]
    both = []
    for _ in range(2):
        both.append(
            subprocess.Popen(
                command, cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        )  # fmt: skip
    counts = []
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        counts.append(int(said.splitlines()[-1]))
    assert essence(Results.read(shared)) == essence(Results.read(tmp_path / "whole"))
    assert min(counts) > 0
    bounds = len(list((tmp_path / "whole" / "store" / "cells").glob("[!.]*.npz")))
    assert sum(counts) == bounds


# An evaluation whose last line says how many cells it wrote.
COUNTING = """
import sys
from robust_ood import cli
from robust_ood.evaluation.store import FolderStore
written = []
write = FolderStore.write
def counted(self, key, *arguments, **settings):
    written.append(key)
    return write(self, key, *arguments, **settings)
FolderStore.write = counted
code = cli.main(["evaluate", *sys.argv[1:]])
print(len(written), file=sys.stderr)
sys.exit(code)
"""


def test_a_killed_command_goes_on_to_the_same_rows(tmp_path, checkpoint, capsys):
    certificate = {**SMOOTHING, "draws": 2000}
    whole = arguments(checkpoint, tmp_path / "whole", [certificate])
    assert cli.main(["evaluate", *whole]) == 0
    assert "forward passes" in capsys.readouterr().err
    killed = tmp_path / "killed"
    command = arguments(checkpoint, killed, [certificate])
    process = subprocess.Popen(
        [sys.executable, "evaluate.py", *command], cwd=ROOT, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if len(list((killed / "store" / "cells").glob("[!.]*.npz"))) >= 3:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert cli.main(["evaluate", *command]) == 0
    assert essence(Results.read(killed)) == essence(Results.read(tmp_path / "whole"))
