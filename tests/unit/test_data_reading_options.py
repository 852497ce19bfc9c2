"""How images are read is one group of settings, and its old, flat names work for one release."""

import warnings

import pytest
from jsonargparse import ActionConfigFile, ArgumentParser

from robust_ood.cli.resume import refuse_changes
from robust_ood.data import OODData, ReadingOptions
from robust_ood.errors import UserError


def read(folder, *configs, arguments=()):
    """Return the data of configs that compose, and of arguments after them, and the settings."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("-c", action=ActionConfigFile)
    parser.add_class_arguments(OODData, "data")
    given = []
    for number, text in enumerate(configs):
        path = folder / f"{number}.yaml"
        path.write_text(text)
        given += ["-c", str(path)]
    settings = parser.parse_args([*given, *arguments])
    return parser.instantiate_classes(settings).data, settings.as_dict()


def test_configs_and_arguments_merge_field_by_field(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=DeprecationWarning, message=r"data\.")
        data, _ = read(
            tmp_path,
            "data: {reading: {workers: 3}}",
            "data: {reading: {memory_limit: 9}}",
            arguments=["--data.reading.on_device", "false"],
        )
    assert data.reading == ReadingOptions(3, 9, False)


@pytest.mark.parametrize(
    ("name", "value"), [("workers", 4), ("memory_limit", 7), ("on_device", False)]
)
def test_old_names_work_and_say_the_new_one(tmp_path, name, value):
    expected = ReadingOptions(**{name: value})
    message = rf"data\.{name} is deprecated.*use data\.reading\.{name}"
    with pytest.warns(DeprecationWarning, match=message) as caught:
        assert OODData(**{name: value}).reading == expected
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match=message):
        assert read(tmp_path, f"data: {{{name}: {str(value).lower()}}}")[0].reading == expected
    arguments = [f"--data.{name}", str(value).lower()]
    with pytest.warns(DeprecationWarning, match=message):
        assert read(tmp_path, arguments=arguments)[0].reading == expected


def test_an_old_name_overrides_its_field_alone():
    with pytest.warns(DeprecationWarning, match="workers"):
        data = OODData(reading=ReadingOptions(2, 9), workers=5)
    assert data.reading == ReadingOptions(5, 9)


def test_unknown_arguments_and_unusable_values_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'wrokers'"):
        OODData(wrokers=5)
    with pytest.raises(UserError, match=r"data\.reading\.workers: expected .* got -1"):
        ReadingOptions(workers=-1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_runs_resume(tmp_path):
    old_names = {"workers": 2, "memory_limit": 9, "on_device": True}
    for config in ("data: {reading: {memory_limit: 9}}", "data: {memory_limit: 9}"):
        _, now = read(tmp_path, config)
        before = {key: value for key, value in now["data"].items() if key != "reading"}
        refuse_changes({**now, "data": {**before, **old_names}}, now)
        refuse_changes(now, now)
    with pytest.raises(UserError, match=r"data\.reading\.memory_limit \(was 9, now 8\)"):
        refuse_changes({"data": old_names}, {"data": {"reading": {"memory_limit": 8}}})
