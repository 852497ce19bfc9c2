"""Who may import whom, and a few rules that no linter knows."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "robust_ood"
MODULES = sorted(PACKAGE.rglob("*.py"))
LIGHTNING = ("pytorch_lightning", "lightning", "lightning_fabric")


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Return all nodes of a file's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text())))


def imports(path: Path) -> set[str]:
    """Return the names of all modules that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@cache
def calls(path: Path) -> list[tuple[str, dict[str | None, str]]]:
    """Return every call in a file: as text without its arguments, and the arguments that are given
    by name.
    """
    return [
        (
            ast.unparse(node.func),
            {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords},
        )
        for node in nodes(path)
        if isinstance(node, ast.Call)
    ]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_layers_of_pyproject_hold():
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which(
        "lint-imports"
    )
    if command is None:
        pytest.skip("import-linter is not installed")
    done = subprocess.run(
        [command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"[1-9]\d* kept, 0 broken", done.stdout)


def test_the_modules_are_found():
    assert len(MODULES) > 100
    assert sum(len(calls(path)) for path in MODULES) > 1000


def test_only_data_training_callbacks_and_commands_know_lightning():
    knowing = [
        path for path in MODULES if any(name.split(".")[0] in LIGHTNING for name in imports(path))
    ]
    allowed = ("data", "training", "callbacks", "cli")
    assert knowing
    assert [
        named(path) for path in knowing if path.relative_to(PACKAGE).parts[0] not in allowed
    ] == []


def test_gradients_of_images_belong_to_the_engine():
    """No `.backward(` anywhere: training leaves it to Lightning, attacks differentiate with respect
    to images alone.
    """
    found = [
        (named(path), call)
        for path in MODULES
        for call, _ in calls(path)
        if call.endswith(".backward")
    ]
    assert [one for one in found if not one[0].startswith("robust_ood/training/")] == []


def test_no_checkpoint_is_unpickled_in_trust():
    found = [(named(path), *call) for path in MODULES for call in calls(path)]
    loads = [one for one in found if one[1] == "torch.load"]
    assert loads
    assert [one for one in loads if one[2].get("weights_only") != "True"] == []
    assert [one for one in found if one[1] in ("pickle.load", "pickle.loads")] == []


def test_every_random_draw_has_a_generator():
    """Nothing draws from a global state, or seeds it but by `seed_torch` (for dropout, which knows
    no generator) and `draws.keyed` (for users' data sets, which know none, and with the state given
    back).
    """
    seeding = {"np.random.seed", "random.seed", "seed_everything", "torch.manual_seed"}
    draws = {
        "torch.rand",
        "torch.randn",
        "torch.randint",
        "torch.randperm",
        "torch.bernoulli",
        "torch.multinomial",
    }
    users = "robust_ood/data/sources/draws.py"
    found = [
        (named(path), *call) for path in MODULES for call in calls(path) if named(path) != users
    ]
    assert [one for one in found if one[1] in seeding] == []
    assert [one for one in found if one[1] in draws and "generator" not in one[2]] == []
    assert [one for one in found if one[1] in ("torch.rand_like", "torch.randn_like")] == []
    assert [
        one for one in found if re.match(r"(np|numpy)\.random\.(?!Generator)|random\.", one[1])
    ] == []


def test_files_stay_small():
    lengths = {
        path: len(path.read_text().splitlines()) for path in [*MODULES, *sorted(ROOT.glob("*.py"))]
    }
    allowed = {path: 40 if path.parent == ROOT else 400 for path in lengths}
    assert {named(path): length for path, length in lengths.items() if length > allowed[path]} == {}


def test_names_say_what_is_inside():
    assert not [
        named(path) for path in MODULES if path.stem in ("utils", "helpers", "common", "misc")
    ]
    classes = [
        node.name for path in MODULES for node in nodes(path) if isinstance(node, ast.ClassDef)
    ]
    assert classes
    assert not [name for name in classes if name.strip("_").startswith("Base")]


def test_import_of_the_package_is_light():
    code = (
        "import sys, robust_ood; print(sorted({'torch', 'pytorch_lightning'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    import robust_ood

    assert all(getattr(robust_ood, name) is not None for name in robust_ood.__all__)
    assert set(robust_ood.__all__) <= set(dir(robust_ood))
    with pytest.raises(AttributeError, match="no attribute 'Linff'"):
        _ = robust_ood.Linff
