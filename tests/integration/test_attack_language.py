"""An attack is written in one way: the same text, pasted into each place, is the same attack.

docs/guides/budget.md says which settings are legal where; each is pasted into each place here.
"""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from robust_ood import L2, Linf, attacks, cli
from robust_ood.attacks import PGD, Budget, BudgetConfig, budget_of
from robust_ood.callbacks import RobustValidation
from robust_ood.cli import evaluate_command
from robust_ood.cli.models import each_radius
from robust_ood.cli.resume import refuse_changes
from robust_ood.data import Batch
from robust_ood.errors import UserError
from robust_ood.rules import AutoPGD
from robust_ood.training import ADV, ALOE, SafeSpotAware

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "budget.md").read_text()
ROW = r"^\| `(\w+)` \| .+? \| (yes|no) \| (yes|no) \| (yes|no) \| (yes|no) \| (yes|no) \|$"
TABLE = {setting: legal for setting, *legal in re.findall(ROW, PAGE, re.MULTILINE)}
VALUES = {
    "name": "apgd",
    "norm": "L2",
    "radius": "4/255",
    "region": {"name": "robust_ood.L2", "radius": 0.5},
    "steps": "aloe",
    "step_size": "3/255",
    "random_start": False,
    "rule": {"name": "auto", "inertia": 0.5},
    "start_noise": 2.0,
    "early_steps": [[0.3, 1], [0.6, 3]],
    "replays": 4,
    "restarts": 3,
    "objective": "msp",
    "loss": "margin",
    "keep": "objective",
    "noise": 0.1,
    "noise_draws": 2,
    "seed": 3,
    "precision": "float32",
    "label": "mine",
}
NEEDED = {"start_noise": {"steps": 1}, "replays": {"steps": 1}}
"""What a setting needs beside it."""
SHORT = "{name: pgd, radius: 8/255, steps: 10, step_size: 2/255}"
BASE = ["configs/methods/aloe.yaml", "configs/models/wrn_10_1.yaml", "configs/data/digits.yaml"]


def paste(capsys, tmp_path, text: str, *options: str, method="", place="inlier_attack"):
    """Parse a training config with an attack in it by the real command, and build what it says."""
    config = tmp_path / "mine.yaml"
    of = f"class_path: robust_ood.training.{method}, " if method else ""
    config.write_text(f"model: {{{of}init_args: {{{place}: {text}}}}}")
    base = BASE[1:] if method else BASE
    files = [part for name in base for part in ("-c", str(ROOT / name))]
    capsys.readouterr()
    code = cli.train(["fit", *files, "-c", str(config), *options, "--print_config"])
    shown = capsys.readouterr()
    if code:
        raise UserError(shown.err.strip().removeprefix("error: "))
    written = yaml.safe_load(shown.out)["model"]["init_args"][place]
    if isinstance(written, dict):
        return budget_of(place, BudgetConfig(**written))
    return budget_of(place, written)


def in_training(capsys, tmp_path, settings):
    text = yaml.safe_dump(settings, default_flow_style=True, width=1000).strip()
    return paste(capsys, tmp_path, text, method="ADV")


def in_evaluation(capsys, tmp_path, settings):
    text = yaml.safe_dump([settings], default_flow_style=True, width=1000).strip()
    config = evaluate_command.parser().parse_args(["--attacks", text])
    (attack,) = attacks.build_all(each_radius(config.attacks)).values()
    (validated,) = RobustValidation(["msp"], each_radius(config.attacks)).attacks.values()
    assert validated == attack
    return attack


def in_build(capsys, tmp_path, settings):
    return attacks.build(settings)


def in_python(make):
    def place(capsys, tmp_path, settings):
        given = {
            name: value for name, value in settings.items() if name != "name" or value != "pgd"
        }
        given["region"] = L2(0.5) if "region" in given else Linf("8/255")
        if "rule" in given:
            given["rule"] = AutoPGD(0.5)
        try:
            return make(**given)
        except TypeError as error:
            raise UserError(str(error)) from error

    return place


PLACES = [in_training, in_evaluation, in_build, in_python(Budget), in_python(PGD)]


def test_the_table_has_every_setting():
    assert set(TABLE) == set(VALUES)
    assert set(TABLE) == {
        *attacks.in_loop.BUDGET_SETTINGS,
        *attacks.in_loop.EVALUATION_SETTINGS,
        "label",
    }


@pytest.mark.parametrize(
    "column", range(len(PLACES)), ids=["training", "evaluation", "build", "Budget", "PGD"]
)
@pytest.mark.parametrize("setting", VALUES)
def test_a_setting_is_legal_where_the_page_says(capsys, tmp_path, setting, column):
    needed = {"name": "pgd", **NEEDED.get(setting, {})}
    settings = {**needed, setting: VALUES[setting]}
    if TABLE[setting][column] == "no":
        with pytest.raises(UserError, match=rf"\b{setting}\b") as caught:
            PLACES[column](capsys, tmp_path, settings)
        if column == 0:
            assert "belongs to evaluations" in str(caught.value)
        return
    attack = PLACES[column](capsys, tmp_path, settings)
    default = PLACES[column](capsys, tmp_path, needed)
    if setting != "label":
        assert attack != default, "the setting has no effect"


@pytest.mark.parametrize(
    "text",
    [
        "pgd",
        SHORT,
        "{name: fgsm, radius: 2/255}",
        "{name: apgd, norm: L2, radius: 0.5}",
        "{radius: 1/255, name: pgd, steps: aloe, step_size: 1/255, rule: auto}",
        "{class_path: pgd, init_args: {radius: 8/255, random_start: false}}",
    ],
)
def test_one_text_is_one_attack_everywhere(capsys, tmp_path, make_net, text):
    spec = yaml.safe_load(text)
    expected = budget_of("attack", attacks.build(spec))
    assert budget_of("attack", in_evaluation(capsys, tmp_path, spec)) == expected
    method = ALOE(make_net(), inlier_attack=spec)
    assert method.inlier_attack == expected
    assert method.outlier_attack == expected
    assert SafeSpotAware(make_net(), spec, spec).spot_search == expected
    if "class_path" not in text:
        for method, place in (("ADV", "inlier_attack"), ("SafeSpotAware", "spot_search")):
            assert paste(capsys, tmp_path, text, method=method, place=place) == expected


def test_configs_and_options_compose(capsys, tmp_path):
    paper = paste(capsys, tmp_path, "{}")
    assert paper == Budget(Linf("1/255"), steps=2, step_size="1/255")
    wider = paste(capsys, tmp_path, "{radius: 8/255}")
    assert wider == Budget(Linf("8/255"), steps=9, step_size="1/255")
    options = ["--model.inlier_attack.steps", "5", "--model.init_args.inlier_attack.norm", "L2"]
    relative = paste(capsys, tmp_path, "{radius: 0.5, step_size: null}", *options)
    assert relative == Budget(L2(0.5), 5)
    assert paste(capsys, tmp_path, "pgd", "--model.inlier_attack.norm", "L2") == Budget(L2("8/255"))


def test_a_mapping_with_a_name_is_a_whole_attack(capsys, tmp_path):
    """The recipe below it sets steps and a step size, and neither may leak into the pasted text."""
    text = "{name: pgd, radius: 8/255, steps: 4}"
    whole = Budget(Linf("8/255"), steps=4)
    assert paste(capsys, tmp_path, text) == whole
    assert paste(capsys, tmp_path, "{radius: 1/255}", "--model.inlier_attack", text) == whole
    assert paste(capsys, tmp_path, "{radius: 1/255}", f"--model.inlier_attack={text}") == whole
    init = "--model.init_args.inlier_attack"
    assert paste(capsys, tmp_path, "{radius: 1/255}", init, text) == whole
    narrower = paste(capsys, tmp_path, text, "--model.inlier_attack.radius", "4/255")
    assert narrower == Budget(Linf("4/255"), steps=4)


REGION = "{class_path: robust_ood.Linf, init_args: {radius: 1/255}}"
LONG = f"{{region: {REGION}, steps: 2, step_size: 1/255}}"
OF_A_RUN = LONG.replace("255}}", "255, clip: true}}").replace(
    "steps: 2", "steps: 2, restarts: 1, keep: best, noise: 0.0, seed: 0"
)


@pytest.mark.parametrize("text", [LONG, OF_A_RUN], ids=["written", "of a run's config.yaml"])
def test_the_long_form_works_for_one_release(capsys, tmp_path, text):
    with pytest.warns(DeprecationWarning, match=r"model\.inlier_attack\.region is deprecated"):
        assert paste(capsys, tmp_path, text) == Budget(Linf("1/255"), 2, 1 / 255)
    options = ["--model.inlier_attack.region", "L2", "--model.inlier_attack.region.radius=0.5"]
    with pytest.warns(DeprecationWarning, match=r"inlier_attack\.norm"):
        changed = paste(capsys, tmp_path, "{steps: 3, step_size: 0.2}", *options)
    assert changed == Budget(L2(0.5), 3, 0.2)
    with pytest.warns(DeprecationWarning, match=r"inlier_attack\.radius"):
        changed = paste(capsys, tmp_path, "{region: {init_args: {radius: 4/255}}}")
    assert changed == Budget(Linf("4/255"), 5, 1 / 255)


OWN = """
from dataclasses import dataclass
from robust_ood import Linf
from robust_ood.attacks import PGD, InLoopAttack
from robust_ood.rules import Steepest
from robust_ood.training import ADV

@dataclass(frozen=True)
class Narrow(Linf):
    name = "Narrow"

class Mine(PGD):
    def __init__(self, region, steps: int = 4, depth: float = 0.5):
        super().__init__(region, steps)

class Ready:
    keeps_clean = True
    def __init__(self, radius: float = 0.1):
        self.radius = radius
    def settings(self): ...
    def on_score(self, detector, images, direction, indices): ...
    def on_label(self, net, images, labels, indices): ...

class Unready:
    keeps_clean = True

@dataclass(frozen=True)
class Halved(Steepest):
    pass

class Old(ADV):
    def __init__(self, net, inlier_attack: PGD, seed: int = 0):
        super().__init__(net, inlier_attack, seed=seed)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_parts", None)


def test_classes_of_the_users_own(capsys, tmp_path, own):
    region = {"class_path": "own_parts.Narrow", "init_args": {"radius": "3/255"}}
    spec = {"name": "pgd", "region": region, "rule": "own_parts.Halved"}
    trained = in_training(capsys, tmp_path, spec)
    evaluated = in_evaluation(capsys, tmp_path, spec)
    import own_parts

    assert trained.region == evaluated.region == own_parts.Narrow(3 / 255)
    assert trained.rule == evaluated.rule == own_parts.Halved()
    for spec in (
        {"name": "own_parts.Mine", "norm": "L2", "radius": "1/2", "depth": 0.1, "label": "x"},
        {
            "class_path": "own_parts.Mine",
            "init_args": {"norm": "L2", "radius": 0.5, "depth": "1/10"},
        },
    ):
        assert in_evaluation(capsys, tmp_path, spec) == own_parts.Mine(L2(0.5))
    assert attacks.build("own_parts.Ready", radius=0.2).radius == 0.2
    with pytest.raises(
        UserError, match=r"attacks.own_parts.Mine.dept: no such setting; did you mean 'depth'"
    ):
        attacks.build("own_parts.Mine", dept=1)
    with pytest.raises(UserError, match=r"attacks: 'own_parts.Unready' makes no attack: .* lacks "):
        attacks.build("own_parts.Unready")
    with pytest.raises(UserError, match=r"attacks.pgd.region: given together with radius"):
        attacks.build("pgd", region="own_parts.Narrow", radius=0.1)


def test_a_run_of_the_last_release_is_resumed_under_the_same_attack():
    def run(class_path="robust_ood.training.ALOE", **attacks_of):
        return {"model": {"class_path": class_path, "init_args": {"seed": 0, **attacks_of}}}

    old = yaml.safe_load(OF_A_RUN) | {"random_start": True, "rule": None, "step_size": 1 / 255}
    new = {"name": "pgd", "radius": 1 / 255, "steps": "aloe", "step_size": 1 / 255}
    new = {name: new.get(name) for name in attacks.in_loop.BUDGET_SETTINGS}
    before = run(inlier_attack=old, outlier_attack=old)
    refuse_changes(before, run(inlier_attack=new, outlier_attack=None))
    refuse_changes(before, completed_run(run(inlier_attack=new, outlier_attack=None)))
    with pytest.raises(UserError, match=r"inlier_attack\.steps \(was 2, now 3\)"):
        refuse_changes(before, run(inlier_attack={**new, "steps": 3}, outlier_attack=None))
    with pytest.raises(UserError, match=r"outlier_attack"):
        refuse_changes(before, run("robust_ood.training.AOE", inlier_attack=new))


def completed_run(settings):
    return {"model": attacks.in_loop.completed(settings["model"])}


def test_a_written_config_names_the_defaults_that_were_taken():
    fgsm = dict.fromkeys(attacks.in_loop.BUDGET_SETTINGS) | {"name": "fgsm"}
    model = {"class_path": "x.Y", "init_args": {"inlier_attack": "pgd", "spot_search": fgsm}}
    written = attacks.in_loop.completed(model)["init_args"]
    taken = {"norm": "Linf", "radius": 8 / 255, "random_start": True, "step_size": None}
    assert written["inlier_attack"] == {
        "name": "pgd", "region": None, "steps": 10, "rule": None, "start_noise": None,
        "early_steps": None, "replays": None, **taken
    }  # fmt: skip
    assert written["spot_search"]["random_start"] is False
    assert written["spot_search"]["steps"] is None  # it has none to set
    for attack in written.values():
        assert budget_of("attack", BudgetConfig(**attack))


def test_methods_of_the_users_own_keep_the_long_form(capsys, tmp_path, own):
    """A constructor with `inlier_attack: PGD`, as the last release's guide had it."""
    config = tmp_path / "old.yaml"
    config.write_text(f"model: {{class_path: own_parts.Old, init_args: {{inlier_attack: {LONG}}}}}")
    base = [part for name in BASE[1:] for part in ("-c", str(ROOT / name))]
    options = [
        "--model.inlier_attack.region.init_args.radius",
        "4/255",
        "--trainer.fast_dev_run",
        "true",
    ]
    options += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    options += ["--data.batch_size", "2", "--output", str(tmp_path / "run")]
    capsys.readouterr()
    code = cli.train(["fit", *base, "-c", str(config), *options])
    assert code == 0, capsys.readouterr().err


def test_a_budget_that_cannot_reach_its_radius_is_warned_about(make_net):
    short = PGD(Linf("8/255"), steps=2, step_size="1/255")
    said = r"{}: steps x step_size is 2 x 0\.003922 = 0\.007843, less than the radius 0\.03137"
    with pytest.warns(UserWarning, match=said.format("inlier_attack")) as caught:
        ALOE(make_net(), inlier_attack=short)
    assert len(caught) == 1  # the outliers' attack is the same one
    with pytest.warns(UserWarning, match=said.format(r"robust_validation\.attacks\.pgd")):
        RobustValidation(["msp"], [{"name": "pgd", "steps": 2, "step_size": "1/255"}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for radius in ("1/255", "8/255", "13/255"):
            ADV(
                make_net(), {"name": "pgd", "radius": radius, "steps": "aloe", "step_size": "1/255"}
            )
        ADV(make_net(), "pgd")


def test_what_only_evaluations_use_is_never_ignored(make_net):
    for setting in attacks.in_loop.EVALUATION_SETTINGS:
        attack = PGD(Linf("8/255"), **{setting: VALUES[setting]})
        with pytest.raises(UserError, match=rf"^outlier_attack\.{setting}: belongs to evaluations"):
            ALOE(make_net(), "pgd", attack)
    with pytest.raises(UserError, match=r"^inlier_attack\.name: square belongs to evaluations"):
        ADV(make_net(), "square")
    with pytest.raises(UserError, match=r"^inlier_attack: Square belongs to evaluations"):
        ADV(make_net(), attacks.Square(Linf(0.1)))
    with pytest.raises(UserError, match="steps: 'aloe' counts the grey levels of an Linf radius"):
        Budget(L2(0.5), "aloe")


def test_the_former_names_work_for_one_release(make_net, make_images):
    images = make_images(2)
    attack = PGD(Linf(0.1), 2)
    draws = attack.draws(attacks.pgd.torch.arange(2))
    with pytest.warns(DeprecationWarning, match=r"PGD\.run"):
        attack.search(lambda x: x.sum((1, 2, 3)), images, draws)
    with pytest.warns(DeprecationWarning, match=r"Square\.run"):
        attacks.Square(Linf(0.1), 2).search(
            lambda x: x.sum((1, 2, 3)), images, torch.arange(len(images))
        )
    with pytest.warns(DeprecationWarning, match=r"Targeted\(attack=\.\.\.\)"):
        targeted = attacks.Targeted(search=attack, classes=2)
    with pytest.warns(DeprecationWarning, match=r"Targeted\.attack"):
        assert targeted.search is targeted.attack
    method = ADV(make_net(), attack)
    batch = Batch(images, images[:, 0, 0, 0].long(), images[:0], images[:, 0, 0, 0].long(), 0, 0)
    with pytest.warns(DeprecationWarning, match=r"Method\.run_attack"):
        moved = method.search(method.inlier_attack, lambda z: z.sum(1), images, batch, "test")
    assert moved.shape == images.shape
