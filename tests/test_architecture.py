"""Who may import whom, and a few rules that no linter knows."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "robust_ood"
MODULES = sorted(PACKAGE.rglob("*.py"))
LIGHTNING = ("pytorch_lightning", "lightning", "lightning_fabric")


def imports(path: Path) -> set[str]:
    """Return the names of all modules that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def calls(path: Path) -> list[str]:
    """Return every call in a file, as text without its arguments."""
    tree = ast.parse(path.read_text())
    return [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_layers_of_pyproject_hold():
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    if command is None:
        pytest.skip("import-linter is not installed")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"[1-9]\d* kept, 0 broken", done.stdout)


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_only_data_training_callbacks_and_commands_know_lightning(path):
    known = any(name.split(".")[0] in LIGHTNING for name in imports(path))
    allowed = path.relative_to(PACKAGE).parts[0] in ("data", "training", "callbacks", "cli")
    assert allowed or not known


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_gradients_of_images_belong_to_the_engine(path):
    """No `.backward(` anywhere: training leaves it to Lightning, attacks differentiate with respect to images alone."""
    place = path.relative_to(PACKAGE)
    assert not [call for call in calls(path) if call.endswith(".backward")] or place.parts[0] == "training"


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_no_checkpoint_is_unpickled_in_trust(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("weights_only") == "True"
    assert not {"pickle.load", "pickle.loads"} & set(calls(path))


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_every_random_draw_has_a_generator(path):
    """Nothing draws from a global state, or seeds it but by `seed_torch` (for dropout, which knows no generator)."""
    assert not {"np.random.seed", "random.seed", "seed_everything"} & set(calls(path))
    assert "torch.manual_seed" not in calls(path)
    draws = {"torch.rand", "torch.randn", "torch.randint", "torch.randperm", "torch.bernoulli", "torch.multinomial"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in draws or "generator" in {keyword.arg for keyword in node.keywords}, ast.unparse(node)
            assert name not in ("torch.rand_like", "torch.randn_like"), ast.unparse(node)
            assert not re.match(r"(np|numpy)\.random\.(?!Generator)|random\.", name), ast.unparse(node)


@pytest.mark.parametrize("path", [*MODULES, *sorted(ROOT.glob("*.py"))], ids=named)
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= (40 if path.parent == ROOT else 350)


def test_names_say_what_is_inside():
    assert not [named(path) for path in MODULES if path.stem in ("utils", "helpers", "common", "misc")]
    nodes = [node for path in MODULES for node in ast.walk(ast.parse(path.read_text()))]
    assert not [
        node.name for node in nodes if isinstance(node, ast.ClassDef) and node.name.strip("_").startswith("Base")
    ]


def test_import_of_the_package_is_light():
    code = "import sys, robust_ood; print(sorted({'torch', 'pytorch_lightning'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    import robust_ood

    assert all(getattr(robust_ood, name) is not None for name in robust_ood.__all__)
    assert set(robust_ood.__all__) <= set(dir(robust_ood))
    with pytest.raises(AttributeError, match="no attribute 'Linff'"):
        _ = robust_ood.Linff
