"""A real ImageNet network evaluated end to end at 224 px, under attack, on installed pictures.

    python benchmarks/imagenet_demo.py --folder runs/imagenet_demo

Inliers are photographs that scikit-image and scikit-learn are installed with. OOD are pictures of
science and textures (near, as far as pictures go), noise and drawings (far). The evaluation is one
call of `evaluate.py`; what is finished is kept in `--folder`.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import numpy as np
import torch
from encoder_attack_imagenet import CROPS, described, photograph
from numpy.typing import NDArray
from page import ROOT, table, write_page
from PIL import Image

from robust_ood.cli import evaluate
from robust_ood.data import to_float
from robust_ood.evaluation import Results
from robust_ood.evaluation.pictures import read_pictures
from robust_ood.models import EfficientNetLite0

PLACES = (0.1, 0.5, 0.9)
"""Where along its length a photograph is cropped to be scored."""
FITTED_AT = (0.0, 0.3, 0.7, 1.0)
"""Where it is cropped for the detectors that learn from inliers."""
OUTLIERS = {
    "science": ("cell.png", "ihc.png", "retina.jpg", "moon.png", "hubble_deep_field.jpg"),
    "textures": ("brick.png", "grass.png", "gravel.png"),
    "drawings": ("horse.png", "chessboard_RGB.png", "page.png", "text.png", "phantom.png"),
}
DETECTORS = ("msp", "energy", "gen", "odin", "react", "{name: knn, neighbours: 1}")
SHOWN = 84  # side of a picture on the page


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--folder", type=Path, required=True, help="where results are kept")
    arguments.add_argument("--steps", type=int, default=10, help="of PGD")
    arguments.add_argument("--output", type=Path, default=Path("docs/results/imagenet.md"))
    chosen = arguments.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    sets = write_sets(chosen.folder)
    begin = time.perf_counter()
    code = evaluate(
        [
            *("--net", "EfficientNetLite0", "--output", str(chosen.folder / "results")),
            *("--data.root", str(chosen.folder), "--data.train", "fitted.npz"),
            *("--data.test", "photographs.npz", "--data.near", "[science.npz, textures.npz]"),
            *("--data.far", "[noise.npz, drawings.npz]", "--data.num_classes", "1000"),
            *("--data.size", "224", "--detectors", f"[{', '.join(DETECTORS)}]", "--limit", "24"),
            *("--attacks", f"[{{name: pgd, radius: 1/255, steps: {chosen.steps}}}]"),
            *("--figures", "[strips]", "--sanity", "false", "--batch_size", "4"),
        ]
    )
    if code:
        raise SystemExit(code)
    write(chosen, sets, time.perf_counter() - begin)


def write_sets(folder: Path) -> dict[str, NDArray[np.uint8]]:
    """Write the images, labelled by the network itself, and return those that are scored."""
    net = EfficientNetLite0().eval()
    sets = {}
    for name, places in (("fitted", FITTED_AT), ("photographs", PLACES)):
        pixels = np.stack([photograph(path, place) for path in CROPS for place in places])
        sets[name] = pixels
        with torch.no_grad():
            labels = net(to_float(torch.from_numpy(pixels).permute(0, 3, 1, 2))).argmax(1)
        np.savez(folder / f"{name}.npz", images=pixels, labels=labels.numpy())
    for name, files in OUTLIERS.items():
        places = PLACES if len(files) > 3 else (0.0, *PLACES, 1.0)
        crops = [photograph(f"skimage/data/{file}", place) for file in files for place in places]
        sets[name] = np.unique(np.stack(crops), axis=0)  # a square picture has one crop
        np.savez(folder / f"{name}.npz", images=sets[name])
    del sets["fitted"]
    draws = np.random.default_rng(0)
    noise = draws.integers(0, 256, sets["photographs"].shape, dtype=np.uint8)
    np.savez(folder / "noise.npz", images=noise)
    return sets


def write(chosen: argparse.Namespace, sets: dict[str, NDArray[np.uint8]], seconds: float) -> None:
    results = Results.read(chosen.folder / "results")
    rows: dict[str, dict[tuple[str, str], float]] = {}
    for row in results.rows:
        rows.setdefault(row.detector, {})[row.attacked, row.ood] = row.auroc
    cells = []
    for detector, values in rows.items():
        line = [detector]
        for group in ("near", "far"):
            for side in ("none", "in", "out", "both"):
                line.append(f"{values[side, group]:.3f}")
        cells.append(line)
    sides = ("clean", "in", "out", "both")
    header = ["detector", *(f"{group}, {side}" for group in ("near", "far") for side in sides)]
    names = {}
    net = EfficientNetLite0().eval()
    images = sets["photographs"][1 :: len(PLACES)]
    with torch.no_grad():
        likely = net(to_float(torch.from_numpy(images).permute(0, 3, 1, 2))).softmax(1)
    for path, probabilities in zip(CROPS, likely, strict=True):
        names[Path(path).name] = described(probabilities)
    save(chosen, "imagenet_sets.jpg", mosaic(sets))
    save(chosen, "imagenet_attacked.jpg", attacked(chosen.folder / "results"))
    counts = ", ".join(f"{len(pixels)} {name}" for name, pixels in sets.items())
    lines = [
        "EfficientNet-lite0 with its ImageNet weights (`robust_ood.models.EfficientNetLite0`) at "
        "224 px, end to end by `evaluate.py`: photographs as inliers, OOD near (science, textures) "
        f"and far (uniform noise, drawings), clean and under PGD of {chosen.steps} steps within "
        "Linf 1/255 through each detector's own score. A demonstration on few pictures, many of "
        f"them crops of one: {counts}, and as much noise as photographs. {seconds / 60:.0f} "
        "minutes on one core.",
        "",
        *table(header, cells),
        "KNN's bank holds other crops of the same photographs, of square ones the same crop. So "
        "its inliers are next to zero, and what its row keeps under attack says little.",
        "",
        "![Pictures of each set](figures/imagenet_sets.jpg)",
        "",
        "*The middle of each photograph, then pictures of science, textures and drawings.*",
        "",
        "![Pictures before and after an attack through MSP](figures/imagenet_attacked.jpg)",
        "",
        "*Attacked through MSP: clean, attacked, and the difference, 60 times as large. First "
        "photographs, then OOD pictures.*",
        "",
        "What the network sees in the photographs, its three likeliest classes:",
        "",
        *table(("photograph", "classes"), list(names.items())),
        "The pictures come with scikit-image (in the public domain or CC0; motorcycle is of the "
        "Middlebury stereo data of 2014) and scikit-learn (china by danielbuechele, flower by "
        "vultilion: CC BY 2.0).",
        "",
    ]
    write_page(chosen.output, "An ImageNet network, end to end", lines, "timm")


def mosaic(sets: dict[str, NDArray[np.uint8]]) -> Image.Image:
    """Return one line of small pictures for each set."""
    lines = [sets["photographs"][1 :: len(PLACES)]]
    for name in OUTLIERS:
        step = max(1, len(sets[name]) // 8)
        lines.append(sets[name][::step][:8])
    canvas = Image.new("RGB", (8 * SHOWN, len(lines) * SHOWN), "white")
    for row, pixels in enumerate(lines):
        for column, image in enumerate(pixels[:8]):
            small = Image.fromarray(image).resize((SHOWN, SHOWN), Image.Resampling.LANCZOS)
            canvas.paste(small, (column * SHOWN, row * SHOWN))
    return canvas


def attacked(folder: Path) -> Image.Image:
    """Return clean, attacked and enlarged differences of the strips through MSP."""
    chosen = [
        picture
        for picture in read_pictures(folder)
        if picture.kind == "strips" and picture.detector == "msp"
    ]
    (picture,) = chosen
    clean = picture.arrays["clean"]  # (M, H, W, C) in [0, 1] or bytes
    moved = picture.arrays["attacked"]
    scale = 255.0 if clean.max() > 1 else 1.0
    clean = clean / scale
    moved = moved / scale
    difference = (0.5 + 60 * (moved - clean)).clip(0, 1)
    canvas = Image.new("RGB", (len(clean) * SHOWN, 3 * SHOWN), "white")
    for row, images in enumerate((clean, moved, difference)):
        for column, image in enumerate(images):
            pixels = (image * 255).round().astype(np.uint8)
            small = Image.fromarray(pixels).resize((SHOWN, SHOWN), Image.Resampling.LANCZOS)
            canvas.paste(small, (column * SHOWN, row * SHOWN))
    return canvas


def save(chosen: argparse.Namespace, file: str, picture: Image.Image) -> None:
    target = ROOT / chosen.output.parent / "figures" / file
    target.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    picture.save(content, "jpeg", quality=85)
    target.write_bytes(content.getvalue())


if __name__ == "__main__":
    main()
