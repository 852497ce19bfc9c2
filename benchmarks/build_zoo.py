"""Turn a finished run and its evaluation into a network of the zoo, with its card.

    python benchmarks/build_zoo.py runs/digits_aloe results/aloe --name digits-aloe \\
        --recipe "python train.py fit -c configs/experiments/digits_aloe.yaml" --minutes 1

The evaluation must be of the run's checkpoint, clean and under an attack on both sides; without its
numbers there is no card. A run that kept an average of its weights gives the average.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from page import machine

from robust_ood.cli.zoo_command import probe_outputs
from robust_ood.errors import UserError
from robust_ood.evaluation import Results
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.models import export, load_network, read_checkpoint, zoo
from robust_ood.reporting.report_data import ReportData, read_folders
from robust_ood.writing import replace_file

SETS = ("train", "validation", "test", "outliers", "near", "far", "size", "channels")
PROBE = {"set": "noise/uniform", "n": 4}
LICENCE = (
    "Apache-2.0, as the package. The images that it learned from have terms of their own; none of "
    "them is part of the weights."
)


def detection(data: ReportData, model: str) -> list[dict[str, Any]]:
    """Return the means over groups, each with its interval, as the card states them."""
    rows = []
    for row in data.means:
        if row.model != model:
            continue
        entry: dict[str, Any] = {"detector": row.detector, "group": row.group}
        entry |= {"attack": row.attack, "attacked": row.attacked, "norm": row.norm}
        entry |= {"radius": row.radius, "steps": row.steps, "restarts": row.restarts}
        entry |= {"n_id": row.n_id, "n_ood": row.n_ood, "auroc": row.auroc, "fpr95": row.fpr95}
        rows.append({**entry, "interval": data.interval(row)})
    attacked = {row["attacked"] for row in rows}
    if not {"none", "both"} <= attacked:
        raise UserError(
            "results: a card needs rows without attack and with both sides attacked, got "
            f"{', '.join(sorted(attacked)) or 'none'}"
        )
    return rows


def accuracy(results: Results, model: str) -> dict[str, Any] | None:
    """Return the clean and attacked accuracies; None for a network that does not classify."""
    rows = [row for row in results.classification if row.model == model]
    clean = [row for row in rows if row.attack == "none"]
    if not clean:
        return None
    attacked = []
    for row in rows:
        if row.attack != "none":
            entry = {"attack": row.attack, "norm": row.norm, "radius": row.radius}
            attacked.append({**entry, "steps": row.steps, "n": row.n, "accuracy": row.accuracy})
    return {"clean": clean[0].accuracy, "n": clean[0].n, "attacked": attacked}


def sanity(results: Results, model: str) -> dict[str, Any]:
    """Return what the sanity checks said of a network, beside other warnings of the evaluation."""
    if not results.environment.get("sanity"):
        return {"verdict": "not checked", "warnings": []}
    alarms = [warning for warning in results.warnings if warning.startswith(f"{model}, ")]
    verdict = "alarms" if alarms else "no alarm"
    return {"verdict": verdict, "warnings": results.warnings}


def probe(net: torch.nn.Module, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return outputs on synthetic images, by which any machine can check the network."""
    chosen = {**PROBE, "size": settings.get("size") or 32, "channels": settings.get("channels", 3)}
    with torch.inference_mode():
        outputs = probe_outputs(net, chosen)
    return {**chosen, "outputs": [[round(value, 6) for value in row] for row in outputs.tolist()]}


def data_of(settings: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """Return the sets of a run; outliers only where it had a loss of them."""
    sets = {key: settings[key] for key in SETS if settings.get(key) is not None}
    titles = (run / "metrics.csv").read_text().splitlines()[0]
    if "outlier_loss" not in titles:
        sets.pop("outliers", None)
    return sets


def text_of(run: Path, name: str) -> str | None:
    """Return the only line of a run's file, such as its command; None where there is none."""
    path = run / name
    return path.read_text().strip() if path.is_file() else None


def card(options: argparse.Namespace, net: torch.nn.Module, content: Mapping[str, Any]) -> dict:
    """Return the card, but for the hash of the weights."""
    results = Results.read(options.results)
    measured = results.environment.get("networks", {})
    weights = fingerprint(dict(net.state_dict()))
    names = [name for name, measured_weights in measured.items() if measured_weights == weights]
    if not names:
        raise UserError(f"results: {options.results} holds no results of these weights")
    settings = yaml.safe_load((options.run / "config.yaml").read_text())["data"]
    minutes = options.minutes
    if minutes is None and text_of(options.run, "seconds") is not None:
        minutes = round(float(text_of(options.run, "seconds")) / 60, 1)
    recipe = options.recipe or text_of(options.run, "command")
    if recipe is None or minutes is None:
        raise UserError("recipe: a card needs --recipe, the exact command, and --minutes")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    environment = results.environment
    return {
        "schema": zoo.SCHEMA,
        "name": options.name,
        "method": content["method"],
        "data": data_of(settings, options.run),
        "recipe": " ".join(recipe.split()),
        "minutes": minutes,
        "machine": options.machine or machine(),
        "seed": content["config"]["seed_everything"],
        "commit": options.commit or commit.stdout.strip(),
        "licence": options.licence,
        "averaged": "raw_state_dict" in content,
        "epochs": content["epoch"],
        "accuracy": accuracy(results, names[0]),
        "detection": detection(read_folders([options.results]), names[0]),
        "sanity": sanity(results, names[0]),
        "evaluation": {"date": environment["date"], "versions": environment["versions"]},
        "probe": probe(net, settings),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished training")
    parser.add_argument("results", type=Path, help="folder of its evaluation")
    parser.add_argument(
        "--name", required=True, help="what the zoo calls it: cifar10-aloe-wrn-16-2"
    )
    parser.add_argument("--recipe", help="exact command (default: the run's file `command`)")
    parser.add_argument("--minutes", type=float, help="default: the run's file `seconds`")
    parser.add_argument("--machine", help="that trained it (default: this one)")
    parser.add_argument("--commit", help="that trained it (default: this tree's)")
    parser.add_argument("--licence", default=LICENCE, help="notes on data and weights")
    options = parser.parse_args()
    checkpoint = options.run / "last.ckpt"
    try:
        net = load_network(checkpoint)
        content = read_checkpoint(checkpoint)
        entry = card(options, net, content)
        folder = export(
            net, zoo.FOLDER / options.name, "safetensors", {"method": content["method"]}
        )
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    entry["sha256"] = zoo.hash_of(folder / zoo.WEIGHTS)
    replace_file(folder / zoo.CARD, json.dumps(entry, indent=1, allow_nan=False) + "\n")
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
