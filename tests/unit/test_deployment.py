"""Guards: the promise of the threshold, the folder, decisions, exports, drift."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom

import robust_ood as ro
from robust_ood import deployment, detectors
from robust_ood.data import EMBEDDED, OODData
from robust_ood.deployment import (
    conformal_threshold,
    export_guard,
    images_needed,
    load_guard,
    predict_files,
    watch,
    write_guard,
)
from robust_ood.deployment.calibration import Promise
from robust_ood.deployment.description import refuse_code
from robust_ood.deployment.drift import draw, read_log
from robust_ood.deployment.export import onnx_run, real_images
from robust_ood.deployment.preprocessing import Preprocessing
from robust_ood.errors import UserError
from robust_ood.models import ConvNet, DenseNet

pytest.importorskip("safetensors")
PLAIN = [
    "msp",
    "entropy",
    "gen",
    "maxlogit",
    "energy",
    "oe-score",
    "kl-matching",
    "mahalanobis",
    "relative-mahalanobis",
    {"name": "knn", "neighbours": 5},
    {"name": "combood", "neighbours": 5},
    {"name": "vim", "dimensions": 4},
    {"name": "residual", "dimensions": 4},
    "react",
    "ash-p",
    "ash-b",
    "ash-s",
    "scale",
    "dice",
]
GRADIENTS = ["odin"]
REFUSED = [
    "odin",
    "pro-msp",
    "input-noise",
    "safe-spot",
    "ross",
    "smoothed",
    "gradnorm",
    "grad-uncertainty",
]


def digits(**changed) -> OODData:
    return OODData(
        **{
            "train": {"source": "digits/train", "count": 200},
            "validation": {"source": "digits/validation", "count": 100},
            "augmentation": "none",
            "evaluation_batch_size": 64,
            **changed,
        }
    )


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return ConvNet((8, 8), (2, 2), 8, (16,), 10).eval()


@pytest.fixture(scope="module")
def guards(net):
    return deployment.calibrate(net, PLAIN + GRADIENTS, digits())


@pytest.fixture(scope="module")
def images():
    pixels = np.concatenate(
        [EMBEDDED["digits/test"]().images[:24], EMBEDDED["photographs/test"]().images[:24]]
    )
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def name_of(spec) -> str:
    return spec if isinstance(spec, str) else spec["name"]


@pytest.mark.parametrize("accept", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_the_rank_is_the_largest_that_keeps_the_promise(accept, confidence):
    needed = images_needed(accept, confidence)
    with pytest.raises(UserError, match=f"needs at least {needed} calibration images, got"):
        conformal_threshold(torch.arange(float(needed - 1)), accept, confidence)
    for count in (needed, needed + 1, 2 * needed + 7):
        threshold = conformal_threshold(torch.arange(float(count)).flip(0), accept, confidence)
        assert threshold.value == threshold.rank - 1
        assert binom.sf(threshold.rank - 1, count, 1 - accept) >= confidence - 1e-12
        assert binom.sf(threshold.rank, count, 1 - accept) < confidence


def test_the_known_numbers_of_images():
    assert images_needed(0.95, 0.95) == 59
    assert images_needed(0.99, 0.95) == 299


def test_the_promise_holds_over_splits_of_the_digits(net):
    """Of 500 random splits, the accepted share of fresh digits is below the promise in at most the
    stated fraction, up to what 500 draws allow.
    """
    sets = [EMBEDDED[f"digits/{part}"]() for part in ("train", "validation", "test")]
    pixels = torch.from_numpy(np.concatenate([part.images for part in sets]))
    energy = detectors.build("energy", net)
    with torch.no_grad():
        scores = energy(pixels.permute(0, 3, 1, 2).float() / 255)
    broken = 0
    source = torch.Generator().manual_seed(0)
    confidence = 0.9
    for _ in range(500):
        order = torch.randperm(len(scores), generator=source)
        threshold = conformal_threshold(scores[order[:150]], 0.9, confidence)
        fresh = scores[order[150:]]
        broken += int((fresh >= threshold.value).float().mean() < 0.9)
    # The fresh images are a finite sample, and splits share images; both move the share a little.
    assert broken / 500 <= 1 - confidence + 3 * (0.1 * 0.9 / 500) ** 0.5
    assert broken > 0  # the promise is not kept by accepting everything


@pytest.mark.parametrize("wrong", [0.0, 1.0, -0.1, 1.5])
def test_shares_are_shares(wrong):
    with pytest.raises(UserError, match="accept: expected a share"):
        images_needed(wrong)
    with pytest.raises(UserError, match="confidence: expected a share"):
        images_needed(0.9, wrong)


def test_calibration_images_are_not_those_of_training(net):
    same = digits(validation={"source": "digits/train", "count": 200})
    with pytest.raises(UserError, match=r"data\.validation: is the training set"):
        deployment.calibrate(net, ["msp"], same)


def test_too_few_images_are_refused_with_the_number(net):
    with pytest.raises(UserError, match="needs at least 299 calibration images, got 100"):
        deployment.calibrate(net, ["msp"], digits(), Promise(accept=0.99))


def test_a_random_crop_is_no_preprocessing(net):
    data = digits(validation={"source": "digits/validation", "policy": "random_crop", "size": 32})
    with pytest.raises(UserError, match=r"data\.validation: policy: random_crop"):
        deployment.calibrate(net, ["msp"], data)


@pytest.mark.parametrize("spec", PLAIN + GRADIENTS, ids=name_of)
def test_a_folder_gives_back_the_guard(spec, guards, images, tmp_path):
    guard = guards[name_of(spec)]
    loaded = load_guard(write_guard(guard, tmp_path / "guard"))
    few = images[::12]
    for before, after in zip(guard(few), loaded(few), strict=True):
        assert torch.equal(before, after)
    assert loaded.description == guard.description
    assert len(loaded.description.id) == 64
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".pkl", ".ckpt")]
    card = (tmp_path / "guard" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: robust-ood\n")
    assert "at least 95 % of new in-distribution images" in card


@pytest.mark.parametrize(
    "name",
    ["guard.json", "detector.safetensors", "network/weights.safetensors", "network/network.json"],
)
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_folder_is_refused_in_one_line(name, damage, guards, tmp_path):
    folder = write_guard(guards["msp"], tmp_path)
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        place = content.index(b"0.95") if name == "guard.json" else len(content) // 2
        content[place + 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(UserError, match="guard: ") as refused:
        load_guard(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "detector",
    [
        {"name": "mine.Score"},
        {"name": "pro", "score": {"name": "os.system"}},
        {"name": "mean", "scores": ["msp", "os.system"]},
        {"name": "mean", "scores": [{"name": "react", "score": "mine.Score"}]},
        {"name": "deep-ensemble", "checkpoints": ["/etc/passwd"]},
        {"name": "mspp"},
    ],
)
def test_a_folder_may_not_name_code(detector):
    with pytest.raises(UserError, match=r"^detectors: "):
        refuse_code(detector)


@pytest.mark.parametrize("name", ["msp", "mahalanobis", "knn", "react", "odin"])
def test_decisions_do_not_depend_on_how_images_come(name, guards, images):
    """On batch size, order, dtype, layout or threads, beyond the stated rounding."""
    guard = guards[name]
    whole = guard(images)
    floats = images.float() / 255
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    back = order.argsort()
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    other_threads = guard(images)
    torch.set_num_threads(threads)
    ways = {
        "alone": [
            torch.cat(parts) for parts in zip(*(guard(one[None]) for one in images), strict=True)
        ],
        "sevens": [torch.cat(parts) for parts in zip(*map(guard, images.split(7)), strict=True)],
        "order": [part[back] for part in guard(images[order])],
        "float": guard(floats),
        "double": guard(floats.double()),
        "numpy, channels last": guard(images.permute(0, 2, 3, 1).numpy()),
        "threads": other_threads,
    }
    # Of scores beyond those of calibration it grows with them: it is float32's.
    largest = guard.calibration.abs().max().float()
    rounding = guard.description.rounding * (whole.scores.abs() / largest).clamp_min(1)
    near = (whole.scores - guard.threshold).abs() <= rounding
    for way, (scores, accepted, classes, probabilities) in ways.items():
        assert ((scores - whole.scores).abs() <= rounding).all(), way
        assert torch.equal(accepted[~near], whole.accepted[~near]), way
        assert torch.equal(classes, whole.classes), way
        assert torch.allclose(probabilities, whole.probabilities, atol=1e-5), way


def test_rounding_rejects_no_calibration_image(guards):
    for guard in guards.values():
        threshold = guard.description.threshold
        accepted = (guard.calibration >= guard.threshold).sum()
        assert accepted >= threshold.images - threshold.rank + 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "expected a tensor or an array"),
        ([[1]], "expected a tensor or an array"),
        (torch.zeros(3, 32, 32), "expected a batch"),
        (torch.zeros(0, 3, 32, 32), "expected a batch"),
        (torch.zeros(2, 5, 32, 32), "expected a batch"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int64), "expected uint8"),
        (torch.full((2, 3, 32, 32), 255.0), "expected \\[0, 1\\]"),
        (torch.full((2, 3, 32, 32), float("nan")), "NaN"),
        (np.zeros((2, 3, 32, 32), np.int32), "expected a tensor or an array"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(given, message, guards):
    with pytest.raises(UserError, match=message):
        guards["msp"](given)


def test_images_of_other_sizes_are_decided_on_as_files_are(guards, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (record,) = predict_files(guards["msp"], [tmp_path / "a.png"])
    decision = guards["msp"](pixels[None])
    assert record["score"] == decision.scores.item()
    grey = guards["msp"](pixels[None, :, :, :1])
    assert grey.probabilities.shape == (1, 10)


def test_oblong_networks_take_their_own_size():
    oblong = Preprocessing(32, 48)
    assert oblong.tensor(torch.zeros(2, 3, 32, 48)).shape == (2, 3, 32, 48)
    assert oblong.tensor(torch.zeros(2, 1, 32, 48)).shape == (2, 3, 32, 48)
    with pytest.raises(UserError, match="takes 32 x 48 pixels"):
        oblong.tensor(torch.zeros(2, 3, 32, 32))


def test_strips_are_refused_before_they_are_scaled(guards, tmp_path):
    """A strip of 1 x 200,000 pixels would become 32 x 6,400,000 before it is cropped."""
    Image.new("RGB", (200_000, 1)).save(tmp_path / "strip.png")
    (record,) = predict_files(guards["msp"], [tmp_path / "strip.png"])
    assert "100 to 1" in record["error"]


def test_stays_in_eval_mode(guards):
    assert not any(module.training for module in guards["msp"].train().modules())


@pytest.mark.parametrize("spec", PLAIN, ids=name_of)
def test_programs_decide_as_pytorch_does(spec, guards, images, tmp_path):
    guard = guards[name_of(spec)]
    exported = export_guard(guard, tmp_path)
    program = torch.export.load(exported.file).module()
    floats = images.float() / 255
    for count in (1, 5, len(floats)):
        with torch.no_grad():
            actual = program(floats[:count])
        expected = guard(floats[:count])
        scale = max(1.0, expected.scores.abs().max().item())
        assert (actual[0] - expected.scores).abs().max() <= 1e-4 * scale
        assert torch.equal(actual[2], expected.classes)
    facts = json.loads((tmp_path / "export.json").read_text())
    assert facts["guard"] == guard.description.id
    assert exported.changed == 0


@pytest.mark.parametrize("name", ["msp", "mahalanobis", "knn", "vim"])
def test_onnx_runtime_decides_as_pytorch_does(name, guards, images, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    exported = export_guard(guards[name], tmp_path, "onnx")
    run = onnx_run(exported.file.read_bytes())
    floats = images.float() / 255
    for count in (1, len(floats)):
        expected = guards[name](floats[:count])
        actual = run(floats[:count])
        scale = max(1.0, expected.scores.abs().max().item())
        assert (actual[0] - expected.scores).abs().max() <= 1e-4 * scale
        assert torch.equal(actual[2], expected.classes)
    assert "largest difference from PyTorch" in exported.in_words()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".data"] == []


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("program", ["torch", "onnx"])
def test_what_needs_gradients_or_draws_is_refused_with_the_reason(
    name, program, net, guards, tmp_path
):
    guard = guards["msp"]
    if name in guards:
        guard = guards[name]
    else:
        guard = deployment.Guard(
            net, detectors.build(name, net), guard.description, guard.calibration
        )
    with pytest.raises(UserError, match="cannot be exported: it") as refused:
        export_guard(guard, tmp_path, program)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_export_compares_before_it_writes(guards, tmp_path, monkeypatch):
    monkeypatch.setattr(deployment.export, "_compare", lambda actual, expected: (1e6, 0))
    with pytest.raises(UserError, match="nothing was written"):
        export_guard(guards["msp"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_real_images_fit_grey_and_oblong_networks():
    for preprocessing in (Preprocessing(28, 28, 1), Preprocessing(20, 30)):
        description = replace(_description(), preprocessing=preprocessing)
        holder = type("Holder", (), {"description": description})()
        assert real_images(holder).shape[1:] == preprocessing.input_shape


def _description():
    threshold = deployment.Threshold(0.0, 0.95, 0.95, 59, 1)
    return deployment.description.Description(
        {"name": "msp"}, threshold, Preprocessing(32, 32), "x"
    )


def test_a_grey_network_is_calibrated_and_loaded(tmp_path):
    net = DenseNet(depth=7, growth=2, bottleneck=False, mean=(0.5,), std=(0.5,)).eval()
    guard = deployment.calibrate(net, ["msp"], digits(channels=1))["msp"]
    loaded = load_guard(write_guard(guard, tmp_path))
    assert loaded.description.preprocessing.channels == 1
    assert loaded(torch.zeros(1, 3, 40, 40)).scores.shape == (1,)


def test_watch_raises_no_more_false_alarms_than_it_states():
    source = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        known = source.normal(size=150)
        alarms += watch(known, source.normal(size=400), 0.0, window=100, false_alarm=0.05).drifted
    assert alarms / 300 <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


def test_watch_finds_what_has_moved(tmp_path):
    source = np.random.default_rng(0)
    known = source.normal(size=300)
    stream = np.concatenate([source.normal(size=400), source.normal(size=400) - 1])
    drift = watch(known, stream, -2.0)
    assert [window.drifted for window in drift.windows] == [False, False, True, True]
    assert "images 401 to 600 scores are lower" in drift.in_words()
    assert "higher" in watch(known, stream + 3, -2.0).in_words()
    pytest.importorskip("matplotlib")
    draw(drift, known, stream, tmp_path / "drift.png", -2.0)
    assert Image.open(tmp_path / "drift.png").size[0] > 500


def test_a_log_is_read_up_to_the_line_being_written(tmp_path):
    log = tmp_path / "log"
    log.write_text('{"score": 1}\n\n{"error": "x", "image": "y"}\n{"score": 2.5}\n{"sco')
    assert read_log(log) == [1.0, 2.5]


@pytest.mark.parametrize(
    "line",
    ["nonsense", "[]", "{}", '{"score": "1"}', '{"score": NaN}', '{"score": true}', "[" * 9999],
)
def test_a_line_of_others_is_named(line, tmp_path):
    log = tmp_path / "log"
    log.write_text('{"score": 1}\n' + line + "\n")
    with pytest.raises(UserError, match="log, line 2"):
        read_log(log)


def test_the_guard_is_found_from_the_top():
    assert ro.load_guard is load_guard
