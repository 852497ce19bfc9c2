"""The grid: what is computed, what is not computed again, what fails, and that rows say what the
scores say.
"""

from __future__ import annotations

import io
import math
import statistics
import weakref
from collections import Counter
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from rich.console import Console
from torch import nn

import robust_ood
from robust_ood import detectors
from robust_ood.attacks import (
    PGD,
    attack_score,
    lower_score,
    precision,
    raise_score,
    registry,
    transferred,
)
from robust_ood.attacks.apply import attack_labels
from robust_ood.attacks.suite import Suite
from robust_ood.cli.evaluate_checks import check_output
from robust_ood.data import OODData, Reading, ReadingOptions, SetSpec
from robust_ood.data.sets import ReadImages
from robust_ood.detectors import MSP, PRO, Detector, Energy
from robust_ood.errors import UserError
from robust_ood.evaluation import (
    FolderStore,
    Grid,
    Progress,
    Results,
    print_results,
    read_cell,
    scoring,
)
from robust_ood.evaluation.rows import ModelRecords
from robust_ood.evaluation.scoring import Batches
from robust_ood.evaluation.summaries import summarise
from robust_ood.evaluation.tasks import AccuracyTask, SanityTask, ScoreTask
from robust_ood.evaluation.versions import code_version
from robust_ood.metrics import (
    auroc,
    auroc_interval,
    deployed_threshold,
    fpr95,
    fpr_interval,
    rate_interval,
)
from robust_ood.regions import Linf, Unbounded

RADIUS = 16 / 255
ATTACK = PGD(Linf(RADIUS), steps=2)
NO_VALIDATION = (
    "data.validation is not given, so thresholds accept 95 % of the very images that are tested; "
    "rates at them are those of no deployed detector"
)
SIZES = {"test": 10, "near": 6, "far": 7}
CHUNK = 4


@pytest.fixture
def arrays(tmp_path):
    draws = np.random.default_rng(0)
    folder = tmp_path / "arrays"
    folder.mkdir()
    for name, count in {"train": 40, **SIZES}.items():
        images = draws.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=np.arange(count) % 4)
    return folder


def data_of(folder, **changes):
    names = {
        "train": "train.npz",
        "test": "test.npz",
        "near": ["near.npz"],
        "far": ["far.npz"],
    } | changes
    return OODData(root=folder, num_classes=4, evaluation_batch_size=4, **names)


@pytest.fixture
def net(make_net):
    return make_net(dtype=torch.float32)


@pytest.fixture
def counted(monkeypatch):
    """Count what is computed: (stage, detector, attack steps) to images."""
    counts: Counter[tuple[str, str, int]] = Counter()
    runs = {kind: kind.run for kind in (ScoreTask, AccuracyTask, SanityTask)}

    def steps(task):
        return task.perturbation.steps if task.perturbation else 0

    def counting_scores(task, labels):
        counts.update(
            {("score", label, steps(task)): task.chunk.stop - task.chunk.start for label in labels}
        )
        return runs[ScoreTask](task, labels)

    def counting_accuracy(task, labels):
        counts["classify", "", steps(task)] += task.chunk.stop - task.chunk.start
        return runs[AccuracyTask](task, labels)

    def counting_sanity(task, labels):
        (label,) = labels
        counts["check", type(task.subject.detectors[label]).__name__, 0] += 1
        return runs[SanityTask](task, labels)

    monkeypatch.setattr(ScoreTask, "run", counting_scores)
    monkeypatch.setattr(AccuracyTask, "run", counting_accuracy)
    monkeypatch.setattr(SanityTask, "run", counting_sanity)
    return counts


def run(net, data, chosen, folder=None, attacks=None, model="net", **settings):
    store = FolderStore(folder) if folder else robust_ood.evaluation.Store()
    settings = {"sanity": False, "chunk": CHUNK} | settings
    grid = Grid(data, {"pgd": ATTACK} if attacks is None else attacks, store, **settings)
    grid.add(model, net, chosen)
    grid.compute()
    return grid.results(50)


def timeless(results):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in results.as_dict()["rows"]]


def test_rows_are_those_of_the_plain_functions(net, arrays):
    pro = PRO(Energy(net), steps=1, step_size=0.01)
    results = robust_ood.evaluate(
        net, detectors={"pro": pro}, attacks={"pgd": ATTACK}, data=data_of(arrays)
    )
    inliers, outliers = (
        torch.from_numpy(np.load(arrays / f"{name}.npz")["images"]).permute(0, 3, 1, 2) / 255
        for name in ("test", "far")
    )
    with torch.no_grad():
        low, high = pro(lower_score(pro, inliers, ATTACK)), pro(raise_score(pro, outliers, ATTACK))
        clean = pro(inliers), pro(outliers)
    found = {(row.attacked, row.ood, row.n_ood): row for row in results.rows if row.group == "far"}
    assert found["both", "far", 7].auroc == auroc(low, high)
    assert found["none", "far", 7].fpr95 == fpr95(*clean)
    assert found["in", "far", 7].auroc == auroc(low, clean[1])
    assert results.complete
    assert results.cells == []  # in memory


def test_a_second_run_computes_nothing_and_says_the_same(net, arrays, tmp_path, counted):
    chosen = {"msp": MSP(net), "energy": Energy(net)}
    first = run(net, data_of(arrays), chosen, tmp_path / "out", sanity=True)
    images = sum(SIZES.values())
    assert counted == {
        ("score", "msp", 0): images, ("score", "energy", 0): images, ("score", "msp", 2): images,
        ("score", "energy", 2): images, ("classify", "", 0): 10, ("classify", "", 2): 10,
        ("check", "MSP", 0): 1, ("check", "Energy", 0): 1,
    }  # fmt: skip
    counted.clear()
    second = run(net, data_of(arrays), chosen, tmp_path / "out", sanity=True)
    assert counted == {}
    assert {**first.as_dict(), "environment": 0} == {
        **second.as_dict(),
        "environment": 0,
    }  # seconds too


def test_a_cell_says_by_itself_what_it_is_of(net, arrays, tmp_path):
    results = run(net, data_of(arrays), {"msp": MSP(net)}, tmp_path / "out")
    budgets = {"none": {}, "pgd": ATTACK.settings()}
    for entry in results.cells:
        for number, file in enumerate(entry.files):
            about = read_cell(tmp_path / "out" / file).about
            names = (about["model"], about["detector"], about["attack"], about["images"])
            assert names == (entry.model, entry.detector, entry.attack, entry.images)
            assert about["settings"] == budgets[entry.attack]
            assert about["code"] == code_version()
            assert about["start"] == number * CHUNK


def test_one_more_detector_computes_only_its_own_cells(net, arrays, tmp_path, counted):
    run(net, data_of(arrays), {"msp": MSP(net)}, tmp_path / "out")
    counted.clear()
    more = run(net, data_of(arrays), {"msp": MSP(net), "energy": Energy(net)}, tmp_path / "out")
    assert {(stage, name) for stage, name, _ in counted} == {("score", "energy")}
    assert timeless(more) == timeless(
        run(net, data_of(arrays), {"msp": MSP(net), "energy": Energy(net)})
    )


def test_one_more_radius_computes_only_its_attack(net, arrays, tmp_path, counted):
    run(net, data_of(arrays), {"msp": MSP(net)}, tmp_path / "out")
    counted.clear()
    attacks = {"pgd": ATTACK, "longer": PGD(Linf(RADIUS), steps=3)}
    run(net, data_of(arrays), {"msp": MSP(net)}, tmp_path / "out", attacks)
    assert set(counted) == {("score", "msp", 3), ("classify", "", 3)}


def test_a_changed_setting_of_a_detector_touches_it_alone(net, arrays, tmp_path, counted):
    run(net, data_of(arrays), {"msp": MSP(net), "energy": Energy(net)}, tmp_path / "out")
    counted.clear()
    run(
        net,
        data_of(arrays),
        {"msp": MSP(net), "energy": Energy(net, temperature=2.0)},
        tmp_path / "out",
    )
    assert {(stage, name) for stage, name, _ in counted} == {("score", "energy")}


def test_other_weights_touch_everything(net, make_net, arrays, tmp_path, counted):
    run(net, data_of(arrays), {"msp": MSP(net)}, tmp_path / "out")
    before = dict(counted)
    counted.clear()
    other = make_net(seed=1, dtype=torch.float32)
    found = run(other, data_of(arrays), {"msp": MSP(other)}, tmp_path / "out")
    assert counted == before
    assert timeless(found) == timeless(run(other, data_of(arrays), {"msp": MSP(other)}))


def test_a_changed_image_touches_its_chunk_alone(net, arrays, tmp_path, counted):
    run(net, data_of(arrays), {"msp": MSP(net)}, tmp_path / "out")
    counted.clear()
    content = dict(np.load(arrays / "far.npz"))
    content["images"][5] ^= 255
    np.savez(arrays / "far.npz", **content)
    found = run(net, data_of(arrays), {"msp": MSP(net)}, tmp_path / "out")
    assert counted == {("score", "msp", 0): 3, ("score", "msp", 2): 3}
    assert timeless(found) == timeless(run(net, data_of(arrays), {"msp": MSP(net)}))


def test_names_and_more_sets_touch_nothing_that_is_there(net, arrays, tmp_path, counted):
    run(net, data_of(arrays), {"msp": MSP(net)}, tmp_path / "out")
    counted.clear()
    again = run(
        net,
        data_of(arrays, near=[]),
        {"probability": MSP(net)},
        tmp_path / "out",
        model="other name",
    )
    assert counted == {}
    assert {(row.model, row.detector) for row in again.rows} == {("other name", "probability")}
    more = data_of(arrays, near=["near.npz", "train.npz"], allow_overlap=True)
    run(net, more, {"msp": MSP(net)}, tmp_path / "out")
    assert counted == {("score", "msp", 0): 40, ("score", "msp", 2): 40}


def test_the_limit_cuts_the_sets(net, arrays):
    results = run(net, data_of(arrays), {"msp": MSP(net)}, limit=5)
    assert {(row.n_id, row.n_ood) for row in results.rows} == {(5, 5)}


def test_the_environment_says_which_precision_attacks_used(net, arrays, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    few = {"msp": MSP(net), "ash": detectors.build("ash-s", net)}
    chosen = {
        "attacks": {"pgd": ATTACK},
        "data": data_of(arrays),
        "sanity": False,
        "folder": tmp_path / "cells",
    }
    expected = {"bfloat16": ["classifier", "msp"], "float32": ["ash"]}
    for _ in range(2):  # computed, then found
        results = robust_ood.evaluate(net, detectors=few, intervals=0, **chosen)
        assert results.environment["attack_precisions"] == expected


def test_what_is_fitted_is_kept(net, arrays, tmp_path, monkeypatch):
    fits = []
    fit = detectors.fit
    monkeypatch.setattr(
        detectors, "fit", lambda chosen, loader: fits.append(len(chosen)) or fit(chosen, loader)
    )

    def both():
        return {
            "knn": detectors.build("knn", net, neighbours=2),
            "maha": detectors.build("mahalanobis", net),
        }

    first = run(net, data_of(arrays), both(), tmp_path / "out")
    assert fits == [2]
    assert timeless(run(net, data_of(arrays), both(), tmp_path / "out")) == timeless(first)
    assert fits == [2]
    run(
        net,
        data_of(arrays),
        {**both(), "vim": detectors.build("vim", net, dimensions=4)},
        tmp_path / "out",
    )
    assert fits == [2, 1]


def test_workers_read_what_detectors_are_fitted_on(net, arrays, monkeypatch):
    np.save(arrays / "train.npy", np.load(arrays / "train.npz")["images"])
    (arrays / "train.npz").unlink()
    np.save(arrays / "labels.npy", np.arange(40) % 4)
    readings, fit = [], detectors.fit
    monkeypatch.setattr(
        detectors,
        "fit",
        lambda few, loader: readings.append(loader._reader.reading) or fit(few, loader),
    )
    data = data_of(
        arrays,
        train=SetSpec("train.npy", labels="labels.npy"),
        reading=ReadingOptions(workers=1, memory_limit=0),
    )
    assert run(net, data, {"knn": detectors.build("knn", net, neighbours=2)}).rows
    assert readings == [Reading(1)]


def test_training_images_are_asked_for_only_to_fit(net, arrays):
    data = data_of(arrays, train=None)
    assert run(net, data, {"msp": MSP(net)}).rows
    with pytest.raises(UserError, match=r"data\.train: not given"):
        run(net, data, {"knn": detectors.build("knn", net)})


class Exact(MSP):
    """Is differentiated in float32 only."""

    def attack_surface(self):
        return replace(super().attack_surface(), needs_float32=True)


@pytest.mark.parametrize("source", ["msp", "softmax"])
def test_a_transferred_attack_is_made_once_for_all_detectors(net, arrays, monkeypatch, source):
    calls = []
    monkeypatch.setattr(
        scoring, "attack_score", lambda *a, **k: calls.append(a) or attack_score(*a, **k)
    )
    attack = {"transfer": transferred(ATTACK, source)}
    chosen = {"msp": MSP(net), "energy": Energy(net), "pro": PRO(MSP(net)), "exact": Exact(net)}
    together = run(net, data_of(arrays), chosen, attacks=attack)
    assert {one.detector for one in together.members} == {None}
    once = len(calls)
    assert once == sum(math.ceil(n / CHUNK) for n in SIZES.values())
    apart = [
        run(net, data_of(arrays), {name: detector}, attacks=attack)
        for name, detector in chosen.items()
    ]
    assert len(calls) == 5 * once
    assert {one.detector for result in apart for one in result.members} == {None}
    assert timeless(together) == [row for one in apart for row in timeless(one)]


class Hungry(Detector):
    """Takes five images at most."""

    def __init__(self, net: nn.Module, error: type[Exception]) -> None:
        super().__init__()
        self.detector, self.error = MSP(net), error

    def forward(self, images):
        if len(images) > 5:
            raise self.error("not enough memory: you tried to allocate 10 bytes")
        return self.detector(images)


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, RuntimeError, MemoryError])
def test_batches_that_do_not_fit_are_halved_and_the_rows_stay(net, arrays, error):
    wanted = run(net, data_of(arrays), {"msp": MSP(net)}, chunk=10)
    found = run(net, data_of(arrays), {"msp": Hungry(net, error)}, chunk=10, batch_size=10)
    assert found.failures == []
    for row, like in zip(timeless(found), timeless(wanted), strict=True):
        assert row == pytest.approx(like, abs=1e-6)


def test_a_chunk_without_a_readable_image_leaves_the_rows_to_the_rest(net, arrays, tmp_path):
    images = np.random.default_rng(4).integers(0, 256, (CHUNK + 1, 6, 6, 3), dtype=np.uint8)
    for count in (CHUNK, CHUNK + 1):
        (tmp_path / f"{count}").mkdir()
        for index in range(count):
            Image.fromarray(images[index]).save(tmp_path / f"{count}" / f"{index}.png")
    (tmp_path / f"{CHUNK + 1}" / f"{CHUNK}.png").write_bytes(b"no picture")
    chosen = {"msp": MSP(net), "energy": Energy(net)}

    def far(count):
        return SetSpec(str(tmp_path / f"{count}"), name="far", size=6, max_unreadable=0.3)

    wanted, found = (
        run(
            net,
            data_of(arrays, far=[far(count)], reading=ReadingOptions(memory_limit=0)),
            chosen,
            tmp_path / "out",
        )
        for count in (CHUNK, CHUNK + 1)
    )
    assert found.failures == []
    assert timeless(found) == timeless(wanted)
    assert {row.n_ood for row in found.rows if row.group == "far"} == {CHUNK}


def test_images_that_were_scored_are_let_go(net, arrays, monkeypatch):
    made, most = [], []

    def watch(attack):
        def follow(*args, **settings):
            most.append(sum(image() is not None for image in made))
            found = attack(*args, **settings)
            made.append(weakref.ref(found.images))
            return found

        return follow

    monkeypatch.setattr(scoring, "attack_score", watch(attack_score))
    monkeypatch.setattr(scoring, "attack_labels", watch(attack_labels))
    assert run(net, data_of(arrays), {"msp": MSP(net)}, chunk=10, batch_size=2).rows
    assert len(made) > 10
    assert max(most) == 0


def test_a_size_that_fits_is_kept():
    seen, batches = [], Batches(8)
    images = ReadImages(torch.zeros(9, 1), torch.zeros(9), torch.arange(9))

    def work(part):
        seen.append(len(part.images))
        if len(part.images) > 3:
            raise MemoryError
        return part.indices.tolist()

    assert [index for part in batches.map("kind", images, work) for index in part] == list(range(9))
    assert seen == [8, 4, 2, 2, 2, 2, 1]
    seen.clear()
    batches.map("kind", images, work)
    assert seen == [2, 2, 2, 2, 1]
    with pytest.raises(RuntimeError, match="a bug"):
        batches.map("kind", images, lambda part: (_ for _ in ()).throw(RuntimeError("a bug")))


class Broken(Detector):
    """Fails in one way."""

    def __init__(self, net: nn.Module, how: str) -> None:
        super().__init__()
        self.detector, self.how = MSP(net), how
        if how == "fit":
            self.declare("mean")

    def learn(self):
        if self.how == "fit":
            raise ValueError("two\nlines")
        yield from ()

    def forward(self, images):
        if self.how == "score":
            raise ValueError("two\nlines")
        scores = self.detector(images)
        return scores * math.nan if self.how == "nan" else scores

    def surrogate(self, images):
        if self.how == "attack":
            raise ValueError("two\nlines")
        return self.detector.surrogate(images)


@pytest.mark.parametrize(
    ("how", "stage", "attack"),
    [
        ("fit", "fit", "none"),
        ("score", "score", "none"),
        ("nan", "score", "none"),
        ("attack", "score", "pgd"),
    ],
)
def test_a_failure_is_reported_once_and_the_rest_goes_on(net, arrays, tmp_path, how, stage, attack):
    wanted = run(net, data_of(arrays), {"msp": MSP(net), "energy": Energy(net)})
    chosen = {"msp": MSP(net), "broken": Broken(net, how), "energy": Energy(net)}
    for _ in range(2):  # what failed is tried again by a second start
        found = run(net, data_of(arrays), chosen, tmp_path / "out")
        (failure,) = found.failures
        assert (failure.model, failure.detector, failure.stage, failure.attack) == (
            "net",
            "broken",
            stage,
            attack,
        )
        assert failure.error in ("ValueError: two lines", "UserError: 4 of 4 scores are not finite")
        assert "Traceback" in failure.traceback
        others = [row for row in timeless(found) if row["detector"] != "broken"]
        assert others == timeless(wanted)
        assert {row["attacked"] for row in timeless(found) if row["detector"] == "broken"} == (
            {"none"} if how == "attack" else set()
        )
        assert found.complete
        found.write(tmp_path / "out")
        assert Results.read(tmp_path / "out").failures == found.failures
    repaired = run(net, data_of(arrays), {**chosen, "broken": MSP(net)}, tmp_path / "out")
    assert repaired.failures == []


def test_damaged_cells_are_reported_and_computed_again(net, arrays, tmp_path, counted):
    first = run(net, data_of(arrays), {"msp": MSP(net)}, tmp_path / "out")
    counted.clear()
    (entry,) = [
        e for e in first.cells if e.detector == "msp" and e.attack == "pgd" and e.images == "far"
    ]
    path = tmp_path / "out" / entry.files[1]
    path.write_bytes(path.read_bytes()[:100])
    second = run(net, data_of(arrays), {"msp": MSP(net)}, tmp_path / "out")
    assert counted == {("score", "msp", 2): 3}
    assert timeless(second) == timeless(first)
    warning, note = second.warnings[-1], second.warnings[:-1]
    assert path.name in warning
    assert note == [NO_VALIDATION]
    third = run(net, data_of(arrays), {"msp": MSP(net)}, tmp_path / "out")
    assert third.warnings == [NO_VALIDATION]


def test_what_another_process_is_at_is_left_to_it_and_waited_for(net, arrays, tmp_path, counted):
    """Another process holds the first job, and dies without having done it when all others are
    done.
    """
    store = FolderStore(tmp_path)
    grid = Grid(data_of(arrays), {"pgd": ATTACK}, store, sanity=False, chunk=CHUNK)
    grid.add("net", net, {"msp": MSP(net)})
    first = grid.models[0].tasks[0]
    other = FileLock(tmp_path / "store" / "locks" / f"{first.name}.lock")
    with store.claim("any", wait=False):
        other.acquire()
    waits, claim = [], store.claim

    def claiming(name, title, *, wait):
        if wait:
            waits.append((name, sum(counted.values())))
            other.release()
        return claim(name, title, wait=wait)

    store.claim = claiming
    grid.compute()
    images = sum(SIZES.values())
    assert waits == [(first.name, 2 * images + 2 * 10 - CHUNK)]
    assert grid.results(0).complete


class Impatient(Progress):
    """Presses Ctrl-C before the n-th job."""

    def __init__(self, jobs):
        self.jobs = jobs

    def begin(self, title):
        self.jobs -= 1
        if self.jobs < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("jobs", [0, 2, 7, 13, 20, 26, 27])
def test_what_was_done_before_an_interruption_is_a_valid_result(net, arrays, tmp_path, jobs):
    chosen = {"msp": MSP(net), "energy": Energy(net)}
    whole = run(net, data_of(arrays), chosen)
    grid = Grid(data_of(arrays), {"pgd": ATTACK}, FolderStore(tmp_path), sanity=False, chunk=CHUNK,
                progress=Impatient(jobs))  # fmt: skip
    grid.add("net", net, chosen)
    try:
        grid.compute()
        assert jobs == 27
    except KeyboardInterrupt:
        assert jobs < 27
    partly = grid.results()
    assert partly.complete == (jobs == 27)
    assert [row for row in timeless(whole) if row in timeless(partly)] == timeless(partly)
    partly.write(tmp_path)
    assert Results.read(tmp_path).as_dict() == partly.as_dict()
    assert timeless(run(net, data_of(arrays), chosen, tmp_path)) == timeless(whole)


def test_intervals_are_those_of_the_scores(net, arrays, tmp_path):
    results = run(net, data_of(arrays), {"msp": MSP(net)}, tmp_path / "out")
    plain = {(r.attacked, r.group): r for r in results.rows if r.n_ood in (6, 7)}
    assert len(results.intervals) == 16  # near and far, and their means, four ways
    store = FolderStore(tmp_path / "out")

    def scores(attack, images):
        (entry,) = [
            e for e in results.cells if (e.detector, e.attack, e.images) == ("msp", attack, images)
        ]
        parts = [robust_ood.evaluation.read_cell(tmp_path / "out" / file) for file in entry.files]
        assert np.concatenate([part.arrays["indices"] for part in parts]).tolist() == list(
            range(SIZES[images])
        )
        return torch.from_numpy(np.concatenate([part.arrays["scores"] for part in parts]))

    assert store.damage == {}
    for one in results.intervals:
        assert one.auroc[0] <= plain[one.attacked, one.group].auroc <= one.auroc[1]
        low = scores("pgd" if one.attacked in ("in", "both") else "none", "test")
        high = scores("pgd" if one.attacked in ("out", "both") else "none", one.ood)
        assert one.auroc == auroc_interval(low, [high])
        assert one.fpr95 == fpr_interval(low, [high])
        assert one.tpr_deployed is None  # the threshold is of the tested images


def test_thresholds_come_from_validation_images(net, arrays, tmp_path):
    draws = np.random.default_rng(5)
    images = draws.integers(0, 200, (30, 6, 6, 3), dtype=np.uint8)
    np.savez(arrays / "validation.npz", images=images, labels=np.arange(30) % 4)
    data = data_of(arrays, validation="validation.npz")
    results = run(net, data, {"msp": MSP(net)}, tmp_path / "out")
    assert results.warnings == []
    scores = MSP(net)(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    threshold = deployed_threshold(scores)
    assert int((scores >= threshold).sum()) == 29  # the first share of 30 from .95 on
    assert len(results.rows) == 16
    for row in results.rows:
        assert row.threshold == pytest.approx(threshold, abs=1e-6)
        assert row.threshold_set == "validation"
    clean = next(row for row in results.rows if row.attacked == "none" and row.ood == "far")
    tested = data.inliers("test").read(torch.arange(10)).float() / 255
    accepted = int((MSP(net)(tested) >= threshold).sum())
    assert clean.tpr_deployed == accepted / 10
    interval = next(found for found in results.intervals if found.attacked == "none")
    assert interval.tpr_deployed == rate_interval(accepted, 10)
    groups = {cell.group for cell in results.cells if cell.attack == "pgd"}
    assert "validation" not in groups, "thresholds are set before any attack"


def test_without_validation_the_threshold_is_of_the_test_and_a_note_says_so(net, arrays):
    results = run(net, data_of(arrays), {"msp": MSP(net)})
    assert results.warnings == [NO_VALIDATION]
    assert {row.threshold_set for row in results.rows} == {"test"}


def test_who_won_each_image(net, arrays, tmp_path):
    suite = Suite(
        {"weak": PGD(Linf(1e-6), steps=1), "strong": PGD(Linf(RADIUS), steps=4)}, {"strong": ATTACK}
    )
    results = run(net, data_of(arrays), {"msp": MSP(net)}, tmp_path / "out", {"suite": suite})
    table = {(one.detector, one.images): one for one in results.members}
    assert set(table) == {("msp", "test"), ("msp", "near"), ("msp", "far"), (None, "test")}
    for (_, images), one in table.items():
        assert sum(one.wins.values()) == one.n == SIZES[images]
    assert table["msp", "far"].wins["strong"] > table["msp", "far"].wins["weak"]
    assert set(table["msp", "far"].wins) == {"clean", "weak", "strong"}
    steps = {(row.attack, row.attacked): row.steps for row in results.rows}
    assert steps["suite", "both"] == 5
    assert {one.attack: one.steps for one in results.classification} == {
        "none": 0,
        "suite": ATTACK.steps,
    }
    alone = run(
        net,
        data_of(arrays),
        {"msp": MSP(net)},
        None,
        {"suite": Suite({"weak": PGD(Linf(RADIUS), steps=1)})},
    )
    clean, attacked = (
        alone.classification
    )  # a suite without members for classifiers leaves them alone
    assert (attacked.steps, attacked.radius, attacked.accuracy) == (0, RADIUS, clean.accuracy)


def test_tables_hold_one_column_at_a_time_and_read_no_file_to_say_where_it_is(
    net, arrays, tmp_path, monkeypatch
):
    suite = Suite({"strong": PGD(Linf(RADIUS), steps=2)}, {"strong": ATTACK})
    grid = Grid(
        data_of(arrays), {"suite": suite}, FolderStore(tmp_path / "out"), sanity=False, chunk=CHUNK
    )
    grid.add("net", net, {"msp": MSP(net), "energy": Energy(net)})
    grid.compute()
    table = ModelRecords(grid.models[0], grid.sets, grid.attacks, grid.store)
    held, most, column = [], [], ModelRecords.column

    def follow(self, *place):
        most.append(sum(scores() is not None for scores in held))
        found = column(self, *place)
        held.append(weakref.ref(found.scores))
        return found

    monkeypatch.setattr(ModelRecords, "column", follow)
    assert len(table.wins()) == 7
    assert max(most) == 1
    monkeypatch.setattr(FolderStore, "read", None)
    assert len(table.files()) == 14


def test_mean_and_deviation_over_the_checkpoints_of_a_recipe(make_net, arrays):
    results = Results()
    for seed in range(3):
        net = make_net(seed=seed, dtype=torch.float32)
        results.extend(run(net, data_of(arrays), {"msp": MSP(net)}, model=f"aloe-{seed + 1}"))
    names = [f"aloe-{number}" for number in (1, 2, 3)]
    summary = summarise(results.rows, results.classification, {"aloe": names, "alone": names[:1]})
    detection = [one for one in summary if one.detector]
    assert len(detection) == len(results.rows) / 3
    assert len(summary) == len(detection) + 2
    for one in detection:
        parts = [
            r
            for r in results.rows
            if (r.attacked, r.ood, r.norm) == (one.attacked, one.ood, one.norm)
        ]
        values = [
            part.auroc for part in parts[::2]
        ]  # each is there twice: the set, and the mean of its group
        assert one.recipe == "aloe"
        assert one.mean["auroc"] == pytest.approx(statistics.fmean(values))
        assert one.std["auroc"] == pytest.approx(np.std(values, ddof=1))
    clean = next(one for one in summary if one.detector is None and one.attack == "none")
    accuracies = [one.accuracy for one in results.classification if one.attack == "none"]
    assert clean.mean == {"accuracy": pytest.approx(np.mean(accuracies))}


def test_settings_that_json_cannot_hold_do_not_lose_the_results(tmp_path):
    config = {
        "detectors": [{"threshold": math.inf, "others": (math.nan, 1, None, True)}],
        1: date(2020, 1, 2),
    }
    Results(environment={"config": config}, warnings=["kept"]).write(tmp_path)
    read = Results.read(tmp_path)
    assert read.warnings == ["kept"]
    assert read.environment["config"] == {
        "detectors": [{"threshold": "inf", "others": ["nan", 1, None, True]}],
        "1": "2020-01-02",
    }


def test_an_ood_set_may_be_called_like_the_inliers(net, arrays, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    np.savez(
        other / "test.npz",
        images=np.random.default_rng(9).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8),
    )
    results = run(net, data_of(arrays, far=[str(other / "test.npz")]), {"msp": MSP(net)})
    assert {row.n_ood for row in results.rows if row.group == "far"} == {5}


@pytest.mark.parametrize(
    ("changes", "settings", "field"),
    [
        ({"near": [], "far": []}, {}, "data: neither near nor far"),
        ({}, {"limit": 0}, "limit: 0"),
        ({}, {"batch_size": 0}, "batch_size: 0"),
        ({}, {"chunk": -1}, "chunk: -1"),
        ({"test": None}, {}, "data.test: not given"),
    ],
)
def test_mistakes(net, arrays, changes, settings, field):
    with pytest.raises(UserError, match=field):
        run(net, data_of(arrays, **changes), {"msp": MSP(net)}, **settings)


def test_without_detectors_the_classifier_is_evaluated(net, arrays):
    results = run(net, data_of(arrays), {})
    assert results.rows == []
    assert results.classification


@pytest.mark.parametrize(
    ("attacks", "field"),
    [
        ({"none": ATTACK}, "attacks: 'none'"),
        (
            {"far": PGD(Unbounded(), steps=1, step_size=0.1, random_start=False)},
            "attacks.far: no radius",
        ),
    ],
)
def test_attacks_that_no_row_could_speak_of(net, arrays, attacks, field):
    with pytest.raises(UserError, match=field):
        run(net, data_of(arrays), {"msp": MSP(net)}, attacks=attacks)


def test_a_mean_learns_from_what_its_members_learn_from(net):
    layered = detectors.Mahalanobis(net, ("conv", "penultimate"))
    assert dict(detectors.Mean([MSP(net), layered]).learns_from) == dict(layered.learns_from) != {}


def test_results_of_another_network_of_the_same_name_are_not_replaced(
    net, make_net, arrays, tmp_path
):
    run(net, data_of(arrays), {"msp": MSP(net)}, tmp_path).write(tmp_path)
    check_output(tmp_path, {"net": net}, "test")
    check_output(tmp_path, {"net": net, "more": make_net(seed=3)}, "test")
    with pytest.raises(
        UserError, match=r"output: .* holds results of another network named net; .*--replace true"
    ):
        check_output(tmp_path, {"net": make_net(seed=3)}, "test")


def test_the_legend_is_printed_once_and_before_the_first_table(net, arrays):
    results = run(net, data_of(arrays), {"msp": MSP(net)})
    console = Console(record=True, width=120, file=io.StringIO())
    print_results(results, console, full=True)
    text = console.export_text()
    assert text.startswith("AUROC/FPR95 with clean images, attacked inliers")
    assert text.count("FPR95 is the share of OOD accepted") == 1
    assert text.index("FPR95 is the share") < text.index("attack ")


def test_rows_without_their_clean_row_can_be_printed(net, arrays):
    results = run(net, data_of(arrays), {"msp": MSP(net)})
    results.rows = [row for row in results.rows if row.attacked == "both"]
    console = Console(record=True, width=120, file=io.StringIO())
    print_results(results, console, full=True)
    lines = [line.split() for line in console.export_text().splitlines()]
    means = {row.group: row for row in results.rows if row.ood == row.group}
    for group in ("near", "far"):  # single sets, called like their groups
        (line,) = [
            line for line in lines if line[-2:-1] == [group]
        ]  # nothing stands before the only column of numbers
        assert line[-1].startswith(f"{means[group].auroc:.3f}".removeprefix("0") + "/")


def test_every_registered_attack_tells_what_a_row_needs():
    for name in registry.REGISTRY:
        settings = registry.build(
            name, **{"pgd-low-resolution": {"size": 4}, "patch": {"side": 3}}.get(name, {})
        ).settings()
        assert set(settings) == {"norm", "radius", "steps", "restarts"}


def test_layers_learn_from_auxiliary_outliers_and_an_evaluation_without_any_says_what_is_missing(
    arrays, net
):
    draws = np.random.default_rng(1)
    np.savez(arrays / "outliers.npz", images=draws.integers(0, 60, (30, 6, 6, 3), dtype=np.uint8))

    def layered():
        return {"layered": detectors.Mahalanobis(net, ("conv", "penultimate"))}

    data = data_of(arrays, outliers="outliers.npz")
    exposed, alone = layered(), layered()
    with_outliers = robust_ood.evaluate(net, detectors=exposed, attacks={}, data=data, intervals=0)
    without = robust_ood.evaluate(
        net, detectors=alone, attacks={}, data=data_of(arrays), intervals=0
    )
    assert exposed["layered"].weights.tolist() != [1.0, 1.0] == alone["layered"].weights.tolist()
    assert with_outliers.warnings == [NO_VALIDATION]
    assert without.warnings == [
        NO_VALIDATION,
        "model, layered: data.outliers is not given, so its layers all count alike",
    ]


def test_what_was_learned_from_other_outliers_is_learned_again(arrays, net, tmp_path):
    draws = np.random.default_rng(1)
    for name, high in (("dark", 60), ("bright", 256)):
        np.savez(
            arrays / f"{name}.npz", images=draws.integers(0, high, (30, 6, 6, 3), dtype=np.uint8)
        )
    weights = []
    for name in ("dark", "bright", "dark"):
        chosen = {"layered": detectors.Mahalanobis(net, ("conv", "penultimate"))}
        data = data_of(arrays, outliers=f"{name}.npz")
        robust_ood.evaluate(
            net, detectors=chosen, attacks={}, data=data, intervals=0, folder=tmp_path / "results"
        )
        weights.append(chosen["layered"].weights.tolist())
    assert weights[0] == weights[2] != weights[1]


def test_the_old_name_of_sanity_works_and_warns(net, arrays):
    chosen = {"detectors": {"msp": MSP(net)}, "attacks": {}, "data": data_of(arrays)}
    with pytest.warns(
        DeprecationWarning, match=r"evaluate\(checks=\.\.\.\) .* use evaluate\(sanity"
    ):
        results = robust_ood.evaluate(net, **chosen, intervals=0, checks=False)
    assert results.environment["sanity"] is False
    with pytest.warns(DeprecationWarning, match=r"Grid\(checks=\.\.\.\)"):
        grid = Grid(data_of(arrays), {}, robust_ood.evaluation.Store(), checks=False)
    assert grid.sanity is False


def test_the_validation_callback_and_an_evaluation_score_alike(net, arrays):
    """One scoring path: in whole batches of a loader, or in parts of a chunk."""
    data = data_of(arrays)
    chosen = {"msp": MSP(net), "pro": PRO(Energy(net), steps=1, step_size=0.01)}
    loader = data.evaluation_loader(data.inliers("test"))
    for attack in (None, ATTACK):
        for name, detector in chosen.items():
            loaded = scoring.Scorer("cpu").score({name: detector}, loader, attack, 1)
            (chunk,) = scoring.chunks(data.inliers("test"), None)
            parts = scoring.Scorer("cpu", 3).score({name: detector}, [chunk.read()], attack, 1)
            torch.testing.assert_close(loaded.scores, parts.scores)


def test_the_legend_is_printed_before_the_numbers(net, arrays):
    results = run(net, data_of(arrays), {"msp": MSP(net)})
    text = io.StringIO()
    print_results(results, Console(file=text, width=80), full=True)
    printed = text.getvalue()
    assert printed.index("FPR95 is the share") < printed.index("OOD set")


def test_other_detectors_of_a_network_that_is_held_are_moved_too(net, monkeypatch):
    """Smoothed ones have buffers of their own, and the network is already on the device."""
    moved = []
    monkeypatch.setattr(MSP, "to", lambda detector, device: moved.append((detector, device)))
    scorer = scoring.Scorer(torch.device("cpu"), 4)
    first = MSP(net)
    second = MSP(net)
    scorer.bring(net, {"first": first})
    scorer.bring(net, {"first": first, "second": second})
    assert moved == [(first, torch.device("cpu")), (second, torch.device("cpu"))]
