"""Carry out the Dockerfiles without a container engine: every RUN line, in an empty folder and
environment.

    make docker-test       # or: python tests/packaging/check_docker.py [docker/cpu.Dockerfile ...]
    python tests/packaging/check_docker.py --download      # install every library anew, as a real
    build does

Each stage gets a folder that stands for its file system, and a new Python environment that stands
for the base image's Python; absolute paths in the instructions are moved into that folder. By
default the environment sees the libraries of the one that runs this script, so that PyTorch is not
downloaded again. `useradd` works on the stage's folder. At the end the entry point runs, with its
default command, and so does the health check. For Debian and root.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACES = ("/build", "/dist", "/work", "/home", "/usr/local/bin")
# With the wheel's own version, pip would find the running environment's robust_ood installed
# already.
BORROWED = {"VERSION": "0.0.dev0"}
# How this machine reaches the package index, which a build's network knows by itself.
NETWORK = re.compile(
    r"(PIP_(INDEX|EXTRA|TRUSTED|CERT|CONFIG).*|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|\w+_proxy)",
    re.IGNORECASE,
)
USERADD = '#!/bin/sh\nexec /usr/sbin/useradd --prefix "{folder}" "$@"\n'


@dataclass
class Stage:
    """A stage's folder, and what its instructions have set."""

    folder: Path
    borrow: bool
    cwd: str = "/"
    user: str = "root"
    variables: dict[str, str] = field(default_factory=dict)
    wanted: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place in ("etc", "tmp", "usr/local/bin", "home", "stand-ins"):
            (self.folder / place).mkdir(parents=True)
        (self.folder / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (self.folder / "etc" / "group").write_text("root:x:0:\n")
        useradd = self.folder / "stand-ins" / "useradd"
        useradd.write_text(USERADD.format(folder=self.folder))
        useradd.chmod(0o755)
        venv.create(self.folder / "python", with_pip=True)
        if self.borrow:
            site = next((self.folder / "python").glob("lib/python*/site-packages"))
            behind = [path for path in sys.path if path.endswith("site-packages")]
            (site / "behind.pth").write_text("\n".join(behind))

    @property
    def path_variable(self) -> str:
        """The folders in which the stage's own commands are found."""
        return ":".join(
            str(self.folder / place) for place in ("python/bin", "usr/local/bin", "stand-ins")
        )

    def moved(self, text: str) -> str:
        """Return text with absolute paths of the image moved into the folder."""
        pattern = "|".join(re.escape(place) for place in PLACES)
        return re.sub(
            rf"(?<![\w./-])({pattern})(?![\w-])", lambda found: f"{self.folder}{found[0]}", text
        )

    def path(self, written: str) -> Path:
        """Return where a path of the image is; relative ones are of the working folder."""
        return self.folder / os.path.normpath(os.path.join(self.cwd, written)).lstrip("/")

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command as an image would: with nothing in its environment but what the stage has
        set.
        """
        clean = {"PATH": f"{self.path_variable}:/usr/bin:/bin", "HOME": str(self.folder / "root"),
                 "TMPDIR": str(self.folder / "tmp"), "PIP_NO_WARN_SCRIPT_LOCATION": "1"}  # fmt: skip
        clean |= {key: value for key, value in os.environ.items() if NETWORK.fullmatch(key)}
        clean |= {key: self.moved(value) for key, value in self.variables.items()}
        self.path(".").mkdir(parents=True, exist_ok=True)
        return subprocess.run(
            command, cwd=self.path("."), env=clean, capture_output=True, text=True, check=False
        )


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions, continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(name.upper(), rest.strip()) for name, _, rest in found]


def carry_out(path: Path, work: Path, borrow: bool) -> Stage:
    """Carry out all instructions and return the last stage; end with the output of the first that
    fails.
    """
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for number, (name, rest) in enumerate(instructions(path), 1):
        if name == "FROM":
            base, _, alias = rest.partition(" AS ")
            if not re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64})?", base):
                sys.exit(f"{path.name}: the base {base} is not pinned")
            stage = stages[alias or "last"] = Stage(work / f"stage{len(stages)}", borrow)
            continue
        assert stage is not None, "an instruction before FROM"
        if name == "COPY":
            copy(stage, stages, rest.split())
        elif name == "RUN":
            run_line(stage, rest, f"{path.name}: instruction {number}")
            print(f"ok  {path.name}: RUN {rest}", flush=True)
        elif not configure(stage, name, rest):
            sys.exit(f"{path.name}: instruction {name} is not known here")
    assert stage is not None
    return stage


def run_line(stage: Stage, line: str, where: str) -> None:
    """Run a RUN line; where it fails, end with its output."""
    done = stage.run(["/bin/sh", "-c", stage.moved(line)])
    if done.returncode:
        sys.exit(f"{where}, RUN {line}\n{done.stdout}{done.stderr}")


def configure(stage: Stage, name: str, rest: str) -> bool:
    """Carry out an instruction that only sets something; return whether it is one."""
    if name in ("ARG", "ENV"):
        for assignment in shlex.split(rest):
            key, _, value = assignment.partition("=")
            if stage.borrow and name == "ARG":
                value = BORROWED.get(key, value)
            stage.variables[key] = value
    elif name == "WORKDIR":
        stage.cwd = rest
        stage.path(".").mkdir(parents=True, exist_ok=True)
    elif name == "USER":
        stage.user = rest
    elif name in ("ENTRYPOINT", "CMD"):
        stage.wanted[name] = json.loads(rest)
    elif name == "HEALTHCHECK":
        stage.wanted[name] = json.loads(rest.partition("CMD")[2])
    else:
        return False
    return True


def copy(stage: Stage, stages: dict[str, Stage], words: list[str]) -> None:
    """Copy files of the context, as .dockerignore leaves it, or of another stage."""
    source = stages[words.pop(0).partition("=")[2]] if words[0].startswith("--from=") else None
    *names, target = words
    for name in names:
        allowed = {
            line[1:]
            for line in (ROOT / ".dockerignore").read_text().splitlines()
            if line.startswith("!")
        }
        if source is None and name not in allowed:
            sys.exit(f"COPY {name}: .dockerignore leaves it out")
        origin = ROOT / name if source is None else source.path(name)
        place = stage.path(target)
        if origin.is_dir():
            shutil.copytree(
                origin, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            place = place / origin.name if target.endswith("/") else place
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(origin, place)


def finish(path: Path, stage: Stage) -> None:
    """Run what a container would run."""
    if stage.user in ("root", "0"):
        sys.exit(f"{path.name}: the container runs as root")
    for what, command in (
        ("entry point", stage.wanted["ENTRYPOINT"] + stage.wanted["CMD"]),
        ("health check", stage.wanted["HEALTHCHECK"]),
    ):
        done = stage.run(
            [shutil.which(command[0], path=stage.path_variable) or command[0], *command[1:]]
        )
        if done.returncode:
            sys.exit(
                f"{path.name}: {what}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        print(f"ok  {path.name}: {what}: {shlex.join(command)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files", nargs="*", type=Path, default=sorted((ROOT / "docker").glob("*.Dockerfile"))
    )
    parser.add_argument("--download", action="store_true", help="install every library anew")
    options = parser.parse_args()
    for path in options.files:
        with tempfile.TemporaryDirectory() as folder:
            finish(path, carry_out(path, Path(folder), borrow=not options.download))
    return 0


if __name__ == "__main__":
    sys.exit(main())
