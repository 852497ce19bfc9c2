"""A guard's model card: Markdown with the metadata block that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Sequence

import yaml
from scipy.special import betaincinv

from robust_ood.deployment.description import Description, Measured
from robust_ood.texts import printable, radius_text

_USE = """\
```python
import robust_ood as ro

guard = ro.load_guard("PATH OF THIS FOLDER")
decision = guard(images)  # (N, C, H, W), uint8 or floats in [0, 1]
decision.accepted, decision.classes, decision.scores
```

On the command line: `robust-ood predict GUARD IMAGES`, `robust-ood serve GUARD`.
"""


def model_card(description: Description) -> str:
    """Return the text of a guard's `README.md`."""
    threshold = description.threshold
    preprocessing = description.preprocessing
    metadata = {
        "library_name": "robust-ood",
        "pipeline_tag": "image-classification",
        "tags": ["out-of-distribution-detection", "adversarial-robustness", "robust-ood"],
    }
    head = yaml.safe_dump(metadata, sort_keys=False)
    classes = ", ".join(map(_cell, description.class_names)) or "without names"
    versions = ", ".join(f"{name} {text}" for name, text in description.versions.items())
    lines = [
        f"---\n{head}---\n",
        f"# Guard: {_cell(description.label)} on {_cell(description.calibrated_on)}\n",
        "It classifies an image, or rejects it as foreign to the training distribution.\n",
        "## Promise\n",
        f"An image is accepted where its score is at least {threshold.value:.6g}. Then "
        f"{threshold.in_words()}.\n",
        "This holds for images drawn as the calibration images were, not for a stream that drifts "
        "(`robust-ood watch`), and not under attack: for that, see the measured rates.\n",
        "## Measured\n",
        _measured_table(description.measured),
        "## Use\n",
        _USE,
        "## Details\n",
        f"- Images: {preprocessing.channels} x {preprocessing.height} x {preprocessing.width}, "
        f"other sizes by `{preprocessing.policy}`; normalisation is the network's first layer.",
        f"- Classes: {classes}.",
        f"- Detector: `{_cell(str(dict(description.detector)))}`.",
        f"- Rounding of scores: {description.rounding:.2g}; the threshold is lower by it.",
        f"- Training: `{_cell(str(dict(description.training)) or 'unknown')}`.",
        f"- Versions: {versions}.",
        f"- Created: {description.created} UTC.",
        "",
    ]
    return "\n".join(lines)


def _measured_table(measured: Sequence[Measured]) -> str:
    if not measured:
        return (
            "Nothing was measured beside the calibration images. Give test and OOD sets, or a "
            "folder of results, to `robust-ood calibrate`.\n"
        )
    rows = [
        "| images | group | attack | accepted | 95 % interval | of |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for entry in measured:
        low, high = interval(entry)
        attack = entry.attack
        if entry.norm:
            attack += f" ({radius_text(entry.norm, entry.radius)})"
        rows.append(
            f"| {_cell(entry.images)} | {entry.group} | {_cell(attack)} | "
            f"{100 * entry.share:.1f} % | {100 * low:.1f} .. {100 * high:.1f} % | {entry.count} |"
        )
    note = (
        "Of in-distribution images (`id`) more is better, of the others less. Under attack, each "
        "image is at the worst that the attack reached."
    )
    return "\n".join([*rows, "", note, ""])


def interval(entry: Measured) -> tuple[float, float]:
    """Return the 95 % interval of an accepted share. Source: Clopper and Pearson 1934."""
    failures = entry.count - entry.accepted
    low = 0.0
    high = 1.0
    if entry.accepted:
        low = float(betaincinv(entry.accepted, failures + 1, 0.025))
    if failures:
        high = float(betaincinv(entry.accepted + 1, failures, 0.975))
    return low, high


def _cell(text: str) -> str:
    """Return a text of users for a cell or a line of Markdown."""
    plain = printable(text)
    for sign in "<`":
        plain = plain.replace(sign, " ")
    for sign in "|[*":
        plain = plain.replace(sign, f"\\{sign}")
    return plain
