"""The code in the documentation runs, its pictures are those that their script draws, its commands
are there.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from robust_ood import attacks, cli, detectors

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# results/ and performance/ are written by scripts; the other folders hold prose.
PATHS = (
    r"(?<![\w/])(?:configs|benchmarks|docs/figures|docs/guides|tests)/[\w/]+\.(?:yaml|py|sbatch|md)"
)
WRITTEN = {"results", "performance"}
# Budgets for real use, and less, which the same code takes.
SHORTENED = {
    "guides/certificates.md": {
        "count=32": "count=4",
        '"draws": 2000': '"draws": 200',
        "steps=20": "steps=2",
        "draws=100)": "draws=10)",
        "n=2000": "n=100",
    },
    "tutorials/attack_a_detector.md": {"arange(16)": "arange(8)", "steps=20": "steps=3"},
    "tutorials/five_lines.md": {"count=32": "count=8", "steps=20": "steps=3"},
}
QUICK = {
    "--sanity": "false",
    "--figures": "[shift]",
}  # of evaluations that do not say it themselves
SMALL = [
    "--net",
    "robust_ood.models.DenseNet",
    "--net.depth",
    "7",
    "--net.growth",
    "2",
    "--net.bottleneck",
    "false",
]
PAGES = sorted(
    path for path in DOCS.rglob("*.md") if not WRITTEN & set(path.relative_to(DOCS).parts)
)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def named(path: Path) -> str:
    return path.relative_to(DOCS).as_posix()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder with the quickstart's checkpoint, after a few steps, and results there and in
    `results`.
    """
    folder = tmp_path_factory.mktemp("tutorial")
    command = [
        "fit",
        "-c",
        str(ROOT / "configs/experiments/digits_aloe.yaml"),
        "--trainer.max_steps",
        "3",
        *SMALL,
    ]
    command += [
        "--trainer.enable_progress_bar",
        "false",
        "--output",
        str(folder / "runs" / "quickstart" / "aloe"),
    ]
    assert cli.train(command) == 0
    command = [
        "-c",
        str(ROOT / "configs/evaluate/digits.yaml"),
        "--limit",
        "4",
        "--sanity",
        "false",
    ]
    command += ["--detectors", "[msp]", "--attacks", "[{name: fgsm, radius: 8/255}]"]
    command += [
        "--checkpoint",
        str(folder / "runs/quickstart/aloe/last.ckpt"),
        "--output",
        str(folder / "results"),
    ]
    assert cli.evaluate(command) == 0
    for name in ("oe", "aloe"):
        shutil.copytree(
            folder / "results", folder / "runs" / "quickstart" / name, dirs_exist_ok=True
        )
    return folder


@pytest.mark.parametrize(
    "path", [path for path in PAGES if blocks(path, "(?:python|sh)")], ids=named
)
def test_code_runs(path, workspace, monkeypatch):
    """All of a page, one block after the other, as someone who reads it would: Python, files to
    save, our commands.

    Only budgets are smaller: `SHORTENED`, `QUICK`.
    """
    monkeypatch.chdir(workspace)
    monkeypatch.syspath_prepend(workspace)
    names: dict[str, object] = {"__name__": "__main__"}
    text = path.read_text()
    for whole, short in SHORTENED.get(named(path), {}).items():
        assert whole in text
        text = text.replace(whole, short)
    found = re.findall(r"^```(python|yaml|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for number, (language, block) in enumerate(found, 1):
        if name := re.match(r"# (\w+\.(?:py|yaml))\n", block):
            Path(name[1]).write_text(block)
        elif language == "python":
            exec(compile(block, f"{path.name}, block {number}", "exec"), names)
        for line in block.splitlines() if language == "sh" else []:
            program, *arguments = shlex.split(line)
            assert program == "robust-ood"
            for option, value in QUICK.items():
                arguments += (
                    [option, value]
                    if arguments[0] == "evaluate" and option not in arguments
                    else []
                )
            assert cli.main(arguments) == 0, line


def test_code_of_the_readme_runs(workspace, monkeypatch):
    """Its examples, with images and a network in the place of the reader's."""
    monkeypatch.chdir(workspace)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    your_net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    names: dict[str, object] = {"inliers": images, "outliers": 1 - images, "your_net": your_net}
    examples = blocks(ROOT / "README.md", "python")
    assert len(examples) == 2
    for example in examples:
        exec(compile(example.replace("steps=20", "steps=2"), "README.md", "exec"), names)


def test_readme_shows_the_numbers_of_its_run():
    """Those of its table are kept in `docs/figures/quickstart.json`."""
    run = json.loads((DOCS / "figures" / "quickstart.json").read_text())
    rows = {(row["model"], row["detector"], row["attacked"]): row for row in run["rows"]}
    readme = (ROOT / "README.md").read_text()
    lines = re.findall(r"^\|.*\| (?:MSP|ODIN|PRO) \|.*$", readme, re.MULTILINE)
    networks = [(model, name) for model in ("OE", "ALOE") for name in ("msp", "odin", "pro-msp")]
    assert len(lines) == len(networks)
    for line, (model, detector) in zip(lines, networks, strict=True):
        shown = re.findall(r"(\d\.\d+) / (\d\.\d+)", line)
        expected = []
        for attacked in ("none", "in", "out", "both"):
            row = rows[model, detector, attacked]
            expected.append((f"{row['auroc']:.3f}", f"{row['fpr95']:.2f}"))
        assert shown == expected
    assert run["provenance"]["date"] in readme
    assert f"torch {run['provenance']['torch']}" in readme


def test_readme_counts_what_is_registered():
    counts = f"{len(detectors.REGISTRY)} detectors and {len(attacks.REGISTRY)} attacks"
    assert counts in (ROOT / "README.md").read_text()


def test_shell_scripts_parse():
    for path in PAGES:
        for block in blocks(path, "bash"):
            subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    script = (DOCS / "guides" / "train.sbatch").read_text()
    assert script in blocks(DOCS / "guides" / "clusters.md", "bash")


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_named_configs_and_scripts_are_there(path):
    found = re.findall(PATHS, path.read_text())
    found = [one for one in found if not re.search(r"[A-Z]{3,}", one)]  # placeholders
    assert [one for one in found if not (ROOT / one).is_file()] == []


def test_links_of_the_front_pages_lead_somewhere():
    """Those of the site are checked by `make docs`."""
    links = [
        (path.name, link)
        for path in ROOT.glob("*.md")
        for link in re.findall(r"\]\((?!https?://)([^)#:]+)", path.read_text())
    ]
    assert len(links) > 10
    assert [(page, link) for page, link in links if not (ROOT / link).exists()] == []


def test_every_page_of_results_is_in_their_index():
    pages = {path.name for path in (DOCS / "results").glob("*.md")} - {"index.md"}
    assert set(re.findall(r"\]\((\w+\.md)\)", (DOCS / "results" / "index.md").read_text())) >= pages


def test_make_targets_are_there():
    makefile = (ROOT / "Makefile").read_text()
    for path in PAGES:
        for target in re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text(), re.MULTILINE):
            assert f"\n{target}:" in makefile, f"{path.name}: make {target}"


def test_options_are_the_commands_own(capsys):
    """Each `--option` of our commands in the pages stands in the full help of one of them, but for
    a network's own.
    """
    known = ""
    for command in (cli.train, cli.evaluate, cli.encoder_attack):
        arguments = ["fit", "--help-all"] if command is cli.train else ["--help-all"]
        assert command(arguments) == 0
        known += capsys.readouterr().out
    for path in PAGES:
        for block in [*blocks(path, ""), *blocks(path, "bash"), *blocks(path, "sh")]:
            calls = [
                call
                for call in block.replace("\\\n", " ").splitlines()
                if re.search(r"(train|evaluate|encoder-attack)\b", call)
            ]
            for option in re.findall(r"\s--([a-z_]+(?:\.[a-z_]+)*)\b", " ".join(calls)):
                if "torchrun" not in block or "." in option:
                    assert (
                        f"--{option}" in known or option.startswith("net.") or "init_args" in option
                    ), f"{path.name}: --{option}"


@pytest.mark.parametrize("name", ["front", "fpr95", "fpr95_ood_positive", "deployed"])
def test_words_of_pictures_are_within_them(name):
    """With letters as wide as those of the widest usual fonts."""
    root = ElementTree.parse(DOCS / "figures" / f"{name}.svg").getroot()
    width = float(root.get("viewBox").split()[2])
    for words in root.iter("{http://www.w3.org/2000/svg}text"):
        size = float(words.get("font-size") or root.get("font-size"))
        length = 0.58 * size * len("".join(words.itertext()))
        share = {"start": 0, "middle": 0.5, "end": 1}[words.get("text-anchor", "start")]
        left = float(words.get("x")) - share * length
        assert left >= 0, words.text
        assert left + length <= width, words.text


def test_pictures_are_what_the_script_draws(tmp_path, monkeypatch):
    for script in ("architecture.py", "front.py", "journeys.py", "metrics.py"):
        monkeypatch.setattr(sys, "argv", [script, str(tmp_path)])
        runpy.run_path(str(DOCS / "figures" / script), run_name="__main__")
    drawn = {picture.name: picture.read_text() for picture in tmp_path.glob("*.svg")}
    assert drawn == {
        picture.name: picture.read_text() for picture in (DOCS / "figures").glob("*.svg")
    }, "run the scripts in docs/figures"
