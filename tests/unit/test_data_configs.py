"""Every data config is read by the module as it is written, and names sets that exist."""

from pathlib import Path

import pytest
from jsonargparse import ActionConfigFile, ArgumentParser

from robust_ood.data import CATALOGUE, EMBEDDED, GROUPS, OODData, SetSpec
from robust_ood.data.catalogue import find_part

FOLDER = Path(__file__).parents[2] / "configs" / "data"


def read(path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("-c", action=ActionConfigFile)
    parser.add_class_arguments(OODData, "data")
    return parser.instantiate_classes(parser.parse_args(["-c", str(path)])).data


def sources(specs):
    return [
        spec.source if isinstance(spec, SetSpec) else spec for spec in specs if spec is not None
    ]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_names_are_known(path):
    data = read(path)
    for source in sources([*data.names.values(), *data.near, *data.far, *data.validation_ood]):
        if not source.endswith((".npz", ".npy")):
            assert source in EMBEDDED or find_part(source, CATALOGUE)
    assert data.names["train"]
    assert data.near or data.far


@pytest.mark.parametrize("name", GROUPS)
def test_configs_of_the_papers_sets_have_the_catalogues_groups(name):
    data = read(FOLDER / f"{name}.yaml")
    assert tuple(sources(data.near)) == GROUPS[name].near
    assert tuple(sources(data.far)) == GROUPS[name].far
    entry, part = find_part(sources([data.names["train"]])[0], CATALOGUE)
    assert data.num_classes == entry.parts[part].classes
    assert data.size is not None
