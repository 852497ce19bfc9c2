"""Settings from configs against the signatures of what they configure."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import pytest
import torch

from robust_ood import attacks, detectors
from robust_ood.errors import UserError
from robust_ood.models import Discriminated, Glow, OutlierClass, WordFeatures
from robust_ood.regions import Fraction
from robust_ood.settings import configured, expected


def words_of(net):
    return WordFeatures(
        torch.eye(4)[:, : net.head.out_features], torch.empty(0, 4), 1.0, tuple("abcd")
    )


class Score:
    def __init__(self, net: str, temperature: float = 1.0, top: int = 3) -> None:
        if not temperature > 0:
            raise UserError(f"temperature: {temperature} is not > 0")
        self.got = (net, temperature, top)


class Search:
    def __init__(
        self,
        net: str,
        steps: int,
        step_size: float | Fraction | None = None,
        units: Literal["pixels", "normalised"] = "pixels",
        clip: bool = False,
        layers: tuple[str, ...] = (),
    ) -> None:
        self.got = (net, steps, step_size, units, clip, layers)


def over(net: str, score: Any, steps: int = 3, **settings: Any) -> tuple[Any, int]:
    return score(net, **settings), steps


def passing_on(net: str, **settings: Any) -> Search:
    return Search(net, **settings)


def make(kind: Any, **settings: Any) -> Any:
    return configured("place.name", kind, "net", settings=settings)


def test_settings_reach_what_they_configure():
    assert make(Search, steps=2, units="normalised", clip=True, layers=["a"]).got == (
        "net", 2, None, "normalised", True, ["a"],
    )  # fmt: skip
    assert make(Search, steps=2, step_size=1).got[2] == 1
    assert make(Search, steps=2, step_size=None).got[2] is None
    assert make(passing_on, steps=4).got[1] == 4


def test_numbers_may_be_written_as_fractions():
    assert make(Search, steps=1, step_size="2/255").got[2] == pytest.approx(2 / 255)
    assert make(Score, temperature="1/2").got[1] == 0.5


def test_settings_of_a_part_are_settings_of_the_whole():
    score, steps = make(partial(over, score=Score), steps=5, temperature=2)
    assert (score.got, steps) == (("net", 2, 3), 5)
    assert make(partial(over, score=partial(Score, top=7)))[0].got == ("net", 1.0, 7)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (Search, {}, "place.name.steps: not given"),
        (
            Search,
            {"step": 1},
            r"place.name.step: no such setting; did you mean 'steps'\? known: steps, step_size, units",
        ),
        (Search, {"net": 1}, "place.name.net: no such setting"),
        (Search, {"steps": "ten"}, "place.name.steps: expected a whole number, got 'ten'"),
        (Search, {"steps": 1.5}, "place.name.steps: expected a whole number, got 1.5"),
        (Search, {"steps": True}, "place.name.steps: expected a whole number, got True"),
        (Search, {"steps": None}, "place.name.steps: expected a whole number, got None"),
        (Search, {"steps": 1, "step_size": "8/0"}, "place.name.step_size: '8/0' is not"),
        (
            Search,
            {"steps": 1, "step_size": [1]},
            "expected a finite number or a fraction such as 8/255 or null",
        ),
        (
            Search,
            {"steps": 1, "units": "inches"},
            "place.name.units: expected one of pixels, normalised, got 'inches'",
        ),
        (Search, {"steps": 1, "clip": "yes"}, "place.name.clip: expected true or false, got 'yes'"),
        (
            Search,
            {"steps": 1, "layers": "all"},
            "place.name.layers: expected a list of strings, got 'all'",
        ),
        (Search, {"steps": 1, "layers": [1]}, "place.name.layers"),
        (Score, {"temperature": "hot"}, "place.name.temperature: 'hot' is not"),
        (
            Score,
            {"temperature": math.inf},
            "place.name.temperature: expected a finite number, got inf",
        ),
        (
            Score,
            {"temperature": math.nan},
            "place.name.temperature: expected a finite number, got nan",
        ),
        (
            Score,
            {"temperature": 10**400},
            r"place.name.temperature: expected a finite number, got 10+\.\.\.",
        ),
        (
            Score,
            {"temperature": 10**5000},
            "place.name.temperature: expected a finite number, got an int",
        ),
        (Score, {"temperature": "9" * 5000}, r"place.name.temperature: '9+\.\.\. is not"),
        (Score, {"temperature": 0}, "place.name.temperature: 0 is not > 0"),
        (partial(over, score=Score), {"temperature": -1}, "place.name.temperature: -1 is not > 0"),
        (partial(over, score=Score), {"score": 3}, "place.name.score: no such setting"),
        (
            partial(over, score=Score),
            {"topp": 3},
            "place.name.topp: no such setting; did you mean 'top'",
        ),
        (
            partial(over, score=Score),
            {"step": 3},
            "place.name.step: no such setting; did you mean 'steps'",
        ),
        (passing_on, {"stepz": 3, "steps": 1}, "place.name.stepz: no such setting"),
    ],
)
def test_mistakes_are_named(kind, settings, said):
    with pytest.raises(UserError, match=said) as caught:
        make(kind, **settings)
    assert "\n" not in str(caught.value)


def test_a_part_made_inside_a_maker_leaves_the_place_to_it():
    def whole(net: str, steps: int = 3, **settings: Any) -> Any:
        return configured("", Score, net, settings=settings)

    with pytest.raises(UserError, match=r"^place.name.temperature: -1 is not > 0"):
        make(whole, temperature=-1)
    with pytest.raises(
        UserError,
        match=r"^place.name.stepz: .* did you mean 'steps'\? known: temperature, top, steps",
    ):
        make(whole, stepz=3)


def test_a_bug_in_a_maker_stays_a_bug():
    def broken(net: str) -> None:
        len(3)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="has no len"):
        make(broken)


@pytest.mark.parametrize("name", attacks.REGISTRY)
def test_every_setting_of_every_attack_is_checked(name):
    given = {"pgd-low-resolution": {"size": 4}, "patch": {"side": 3}}.get(name, {})
    check_all_settings(
        lambda **settings: attacks.build(name, **{**given, **settings}), f"attacks.{name}"
    )


@pytest.mark.parametrize("name", detectors.REGISTRY)
def test_every_setting_of_every_detector_is_checked(name, make_net):
    net = make_net()
    needed = {
        "deep-ensemble": {"checkpoints": []},
        "zero-shot": {"words": words_of(net), "rule": "max"},
        "neglabel": {"words": words_of(net), "groups": 1},
        "mahalanobis-layers": {"layers": "conv"},
        "gram": {"layers": "conv"},
        "combood": {"layers": "conv"},
        "rankfeat": {"layers": "conv"},
    }
    given = needed.get(name, {})
    if name in ("likelihood", "complexity"):
        net = Glow(8, levels=1, steps=1, hidden=4)
    if name == "outlier-class":
        net = OutlierClass(net)
    if name == "discriminator":
        net = Discriminated(net)
    check_all_settings(
        lambda **settings: detectors.build(name, net, **{**given, **settings}), f"detectors.{name}"
    )


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        (
            "pro",
            {"score": {"temperature": 2}},
            r"detectors.pro.score: {'temperature': 2} has no 'name'",
        ),
        (
            "mean",
            {"scores": [{"temperature": 2}]},
            r"detectors.mean.scores: {'temperature': 2} has no 'name'",
        ),
        (
            "react",
            {"score": "odin"},
            "detectors.react.score: ReAct wraps a network or a score",
        ),
    ],
)
def test_the_place_of_a_mistake_is_one_path(name, settings, said, make_net):
    with pytest.raises(UserError, match=f"^{said}"):
        detectors.build(name, make_net(), **settings)


def check_all_settings(build: Any, field: str) -> None:
    """Give every known setting, and the names of the makers' own arguments, values of a type that
    none has.
    """
    build()
    with pytest.raises(UserError) as caught:
        build(no_such_setting=1)
    known = caught.value.__cause__.known if caught.value.__cause__ else caught.value.known
    own = (
        "region",
        "attack",
        "search",
        "net",
        "detector",
        "detectors",
        "networks",
        "scored",
        "wrapper",
    )
    for setting in {*known, *own}:
        for value in (math.inf, {"a": 1}, object()):
            with pytest.raises(UserError, match=rf"^{field}\.{setting}\b") as caught:
                build(**{setting: value})
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | None, "a whole number or null"),
        (float | str, "a finite number or a fraction such as 8/255"),
        (float | Fraction | None, "a finite number or a fraction such as 8/255 or null"),
        (Literal["a", "b"] | Literal["b", 3] | None, "one of a, b, 3 or null"),
        (list[int] | tuple[str, ...], "a list of whole numbers or a list of strings"),
        (list, "a list"),
        (dict[str, int], "a mapping"),
        (Score, "a Score"),
    ],
)
def test_types_in_words(hint, words):
    assert expected(hint) == words


def test_values_are_not_converted():
    """As jsonargparse does, which therefore does not read settings here."""
    for value in ("10", "true", True, 1.0):
        with pytest.raises(UserError):
            make(Search, steps=value)
