"""Build the sdist and, from it, the wheel; install the wheel into a new environment and use it from
an empty folder.

    make wheel-test        # or: python tests/packaging/check_wheel.py

The new environment sees the libraries of the one that runs this script, but not its robust_ood:
nothing is downloaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
LARGEST = 40 * 2**20  # bytes of a wheel, with the weights of the zoo
ATTACK = """
import torch
import robust_ood as ro
detector = ro.detectors.MSP(ro.models.pretrained("digits-standard"))
images = ro.data.to_float(ro.data.load_set("digits/test", ".").read(torch.arange(8)))
attacked = ro.attacks.lower_score(detector, images, ro.attacks.PGD(ro.Linf("16/255"), steps=10))
assert bool((detector(attacked) < detector(images)).all())
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        dist = work / "dist"
        run(
            "build",
            [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(ROOT)],
            cwd=work,
        )
        sdist, wheel = next(dist.glob("*.tar.gz")), next(dist.glob("*.whl"))
        check_contents(sdist, wheel)
        python = environment(work / "environment", wheel)
        check_use(python, work / "empty")
        print(f"{sdist.name} and {wheel.name} hold what they should, and work from another folder")
    return 0


def run(what: str, command: list[str], cwd: Path) -> str:
    """Run a command without the caller's Python settings; end with its output where it fails."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{what}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    print(f"ok  {what}", flush=True)
    return done.stdout


def check_contents(sdist: Path, wheel: Path) -> None:
    """Every module and config of the checkout is in the wheel, and nothing else but its
    metadata.
    """
    modules = [
        path
        for path in ROOT.glob("robust_ood/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    wanted = {path.relative_to(ROOT).as_posix() for path in modules}
    wanted |= {
        f"robust_ood/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("configs/**/*.yaml")
    }
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    if found != wanted:
        sys.exit(f"wheel: missing {sorted(wanted - found)}, not wanted {sorted(found - wanted)}")
    if wheel.stat().st_size > LARGEST:
        sys.exit(f"wheel: {wheel.stat().st_size:,} bytes, more than {LARGEST:,}")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = {
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "setup.py",
        "configs/experiments/digits_aloe.yaml",
    } - names
    if missing:
        sys.exit(f"sdist: missing {sorted(missing)}")


def environment(folder: Path, wheel: Path) -> Path:
    """Make an environment with the wheel, and the running one's libraries behind it; return its
    Python.
    """
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    run("install", [sys.executable, "-m", "pip", "--python", str(python), *install], cwd=folder)
    site = next(folder.glob("lib/python*/site-packages"))
    # A path file's plain lines are appended, and path files inside those folders are not read: no
    # editable install.
    behind = [path for path in sys.path if path.endswith("site-packages")]
    (site / "behind.pth").write_text("\n".join(behind))
    return python


def check_use(python: Path, folder: Path) -> None:
    """Run the commands and the short quickstart from an empty folder."""
    folder.mkdir()
    place = run(
        "import", [str(python), "-c", "import robust_ood; print(robust_ood.__file__)"], cwd=folder
    )
    if not Path(place.strip()).is_relative_to(python.parents[1]):
        sys.exit(f"import: robust_ood is {place.strip()}, not the installed wheel's")
    command = str(python.parent / "robust-ood")
    run("robust-ood --help", [command, "--help"], cwd=folder)
    if "cifar10" not in run("robust-ood data list", [command, "data", "list"], cwd=folder):
        sys.exit("data list: does not name cifar10")
    run("robust-ood zoo verify", [command, "zoo", "verify"], cwd=folder)
    run("a network of the zoo under attack", [str(python), "-c", ATTACK], cwd=folder)
    config = ["-c", "configs/experiments/digits_aloe.yaml", "--print_config"]
    if "outlier_weight" not in run(
        "robust-ood train fit", [command, "train", "fit", *config], cwd=folder
    ):
        sys.exit("train: the package's own config was not read")
    run("quickstart", [str(python), "-m", "robust_ood.quickstart", "--short"], cwd=folder)
    results = folder / "runs" / "quickstart" / "results.json"
    if not results.exists():
        sys.exit(f"quickstart: did not write {results.relative_to(folder)}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
