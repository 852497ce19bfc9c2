"""A study: two methods and two seeds, killed and continued, to one comparison; and its mistakes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from robust_ood import cli
from robust_ood.cli.study_file import read_study
from robust_ood.cli.study_runs import steps_within

STUDIES = Path(__file__).parents[2] / "configs" / "studies"
ATTACK = {"name": "pgd", "radius": "16/255", "steps": 1}
SMALL = {
    "seeds": [0, 1],
    "budget": {"steps": 8},
    "reference": "ALOE",
    "train": {"include": ["configs/base/digits_convnet.yaml"], "checkpoints": {"every_n_steps": 1}},
    "evaluate": {
        "include": ["configs/data/digits.yaml"],
        "data": {"far": ["photographs/test"]},
        "attacks": [ATTACK],
        "limit": 12,
        "sanity": False,
        "figures": False,
        "report": False,
    },
    "methods": {
        "OE then ALOE": {
            "train": {
                "include": ["configs/methods/aloe.yaml"],
                "model": {"init_args": {"inlier_attack": ATTACK}},
            },
            "warm_start": {"method": "ALOE", "share": 0.25},
        },
        "ALOE": {
            "train": {
                "include": ["configs/methods/aloe.yaml"],
                "model": {"init_args": {"inlier_attack": ATTACK}},
            },
        },
    },
}


def changed(**settings):
    return {**json.loads(json.dumps(SMALL)), **settings}


def written(folder: Path, study) -> str:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return str(path)


def check_a_run_without_its_stopwatch(command, path):
    """A run that was stopped after its last step has its checkpoint, and nothing left to train."""
    seconds = json.loads(path.read_text())["wall"]["seconds"]
    path.unlink()
    assert cli.study(command) == 0
    assert json.loads(path.read_text())["wall"]["seconds"] == pytest.approx(seconds, abs=0.5)


def test_a_killed_study_goes_on_to_its_comparison(tmp_path, capfd):
    output = tmp_path / "study"
    command = [written(tmp_path, SMALL), "--output", str(output), "--report", "false"]
    process = multiprocessing.get_context("fork").Process(target=cli.study, args=(command,))
    process.start()
    while not (output / "ALOE" / "seed-0" / "last.ckpt").exists():
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    finished = output / "OE then ALOE" / "seed-0" / "last.ckpt"
    before = finished.stat().st_mtime_ns
    capfd.readouterr()
    assert cli.study(command) == 0
    said = capfd.readouterr().out
    assert "ALOE: 8 steps" in said
    assert "OE then ALOE: 6 steps" in said
    assert "after 2 of its warm start" in said
    assert "the reference" in said
    assert "training OE then ALOE, seed 0" not in said
    assert finished.stat().st_mtime_ns == before
    for method, steps in (("ALOE", 8), ("OE then ALOE", 6)):
        for seed in (0, 1):
            watch = json.loads((output / method / f"seed-{seed}" / "stopwatch.json").read_text())
            assert watch["steps"] == steps
            assert watch["wall"]["seconds"] > 0
            assert watch["wall"]["seconds"] >= watch["wall"]["step"]
    text = (output / "comparison.md").read_text()
    assert "both sides attacked" in text
    assert "minus ALOE" in text
    check_a_run_without_its_stopwatch(command, output / "ALOE" / "seed-0" / "stopwatch.json")
    # Other settings would mix networks of two studies.
    other = written(tmp_path, changed(budget={"steps": 9}))
    assert cli.study([other, "--output", str(output)]) == 2
    error = capfd.readouterr().err
    assert "holds runs of OE then ALOE under other settings" in error
    assert error.count("\n") == 1
    # A plain comparison has the same test.
    folders = [str(output / method / "results") for method in ("ALOE", "OE then ALOE")]
    assert cli.compare([*folders, "--reference", "ALOE"]) == 0
    assert "minus ALOE" in capfd.readouterr().out
    assert cli.compare([*folders, "--reference", "ALEO"]) == 2
    assert "reference: " in capfd.readouterr().err


def test_a_mistake_of_an_evaluation_is_found_before_the_trainings(tmp_path, capfd):
    study = changed()
    study["evaluate"]["detectors"] = ["mps"]
    output = tmp_path / "study"
    assert cli.study([written(tmp_path, study), "--output", str(output)]) == 2
    assert "did you mean" in capfd.readouterr().err
    assert not list(output.glob("*/seed-*"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": []}, "seeds: expected a list of whole numbers"),
        ({"seeds": [1, 1]}, "seeds: [1, 1] has one twice"),
        ({"seeds": [-1]}, "seeds: -1 is not a seed"),
        ({"budget": {}}, "budget: expected a mapping of settings"),
        ({"budget": {"steps": 3, "minutes": 1}}, "budget: expected either minutes or steps"),
        ({"budget": {"minutes": -1}}, "budget.minutes: -1 is not a number of minutes > 0"),
        ({"budget": {"minutes": float("nan")}}, "budget.minutes: nan is not"),
        ({"budget": {"steps": 1.5}}, "budget.steps: 1.5 is not a number of steps >= 1"),
        ({"budget": {"hours": 1}}, "budget.hours: unknown setting"),
        ({"budget": {"minutes": 1, "clock": "sun"}}, "budget.clock"),
        ({"reference": "ALEO"}, "reference"),
        ({"methods": {}}, "methods: expected a mapping"),
        ({"methods": {"../x": {"train": {}}}}, "methods: "),
        ({"methods": {"a/b": {"train": {}}}}, "methods: 'a/b' has a slash"),
        ({"methods": {"A": {"trian": {}}}}, "methods.A.trian"),
        ({"train": {"include": ["none.yaml"]}}, "train.include: none.yaml is no file"),
        ({"train": {"output": "x"}}, "train.output: cannot be set in a study"),
        ({"train": {"trainer": {"max_epochs": 3}}}, "train.trainer.max_epochs: cannot be set"),
        ({"evaluate": {"checkpoint": "x"}}, "evaluate.checkpoint: cannot be set"),
        ({"epochs": 3}, "epochs"),
        (
            {"methods": {"A": {"train": {}, "warm_start": {"method": "B"}}}},
            "methods.A.warm_start.method",
        ),
        (
            {"methods": {"A": {"train": {}, "warm_start": {"method": "A", "share": 0.5}}}},
            "A has a warm start itself",
        ),
        (
            {"methods": {"A": {"train": {}, "warm_start": {"method": "A", "share": 1}}}},
            "methods.A.warm_start.share: 1 is not a share",
        ),
    ],
)
def test_mistakes_in_a_study_are_one_line(tmp_path, capfd, settings, words):
    study = changed(**settings)
    if "methods" in settings and settings["methods"] and "reference" not in settings:
        study["reference"] = next(iter(settings["methods"]))
    assert cli.study([written(tmp_path, study), "--output", str(tmp_path / "study")]) == 2
    error = capfd.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_steps_fill_the_time_with_epochs_and_steps():
    clock = {"step": 1.0, "epoch": 5.0}
    for seconds in (1, 7, 15, 30, 31, 100):
        steps = steps_within(seconds, 10, clock)
        taken = steps + 5 * -(-steps // 10)
        assert taken <= seconds or steps == 1
        later = steps + 1
        assert later + 5 * -(-later // 10) > seconds or steps == 1


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_methods_of_each_study_are_read(path, capfd, tmp_path):
    study = read_study(path)
    assert study.methods
    for name in study.methods:
        files = []
        for number, layer in enumerate(study.settings_of(name)):
            file = tmp_path / f"{name}-{number}.yaml"
            file.write_text(yaml.safe_dump(layer))
            files += ["-c", str(file)]
        assert cli.train(["fit", *files, "--print_config"]) == 0, capfd.readouterr().err
