"""Names that moved still work, and say where they are now."""

import importlib

import pytest

from robust_ood.deprecation import moved, warn_renamed


def test_a_moved_name_is_the_new_one_and_warns():
    getattribute = moved("somewhere", {"old_name": "math.pi"})
    with pytest.warns(DeprecationWarning, match=r"somewhere\.old_name .* use math\.pi") as caught:
        value = getattribute("old_name")
    assert 3.14 < value < 3.15
    assert caught[0].filename == __file__


def test_other_names_are_missing_as_ever():
    getattribute = moved("somewhere", {"old_name": "math.pi"})
    with pytest.raises(AttributeError, match="module 'somewhere' has no attribute 'other'"):
        getattribute("other")


def test_a_renamed_setting_is_named_with_its_successor():
    with pytest.warns(DeprecationWarning, match=r"data\.old is deprecated .* use data\.new"):
        warn_renamed("data.old", "data.new")


@pytest.mark.parametrize(
    "name",
    [
        "Average",
        "ClassExtremes",
        "ClassMeans",
        "ClassMoments",
        "Sample",
        "Statistic",
        "double",
        "require_all",
    ],
)
def test_the_statistics_are_still_found_where_they_were(name):
    old = importlib.import_module("robust_ood.detectors.statistics")
    new = importlib.import_module("robust_ood.detectors.fitting.statistics")
    with pytest.warns(DeprecationWarning, match=rf"detectors\.statistics\.{name} is deprecated"):
        assert getattr(old, name) is getattr(new, name)
