"""Every data config is read by the module as it is written, and names sets that exist."""

from pathlib import Path

import numpy as np
import pytest
from jsonargparse import ActionConfigFile, ArgumentParser
from PIL import Image

from robust_ood.data import CATALOGUE, EMBEDDED, GROUPS, OODData, SetSpec, load_set
from robust_ood.data.catalogue import find_part
from robust_ood.errors import UserError

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
    for source in sources(
        [*data.names.values(), *data.near, *data.far, *data.shifted, *data.validation_ood]
    ):
        if not source.endswith((".npz", ".npy", ".txt")):
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


# --- image lists in OpenOOD's layout


def all_sets(data):
    inliers = [spec for spec in data.names.values() if spec is not None]
    return [*inliers, *data.near, *data.far, *data.shifted, *data.validation_ood]


def write_lists(root, data):
    """Write a copy of OpenOOD's layout with two images in each list."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)
    for spec in all_sets(data):
        list_file = root / spec.source
        list_file.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for number, image in enumerate(pixels):
            path = Path(list_file.stem) / "images" / f"{number}.png"
            (root / spec.base / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / spec.base / path)
            label = number if "_" + list_file.parent.name in list_file.stem else -1
            lines.append(f"{path} {label}")
        list_file.write_text("\n".join(lines) + "\n")


OPENOOD = sorted(FOLDER.glob("openood_*.yaml"))


@pytest.mark.parametrize("path", OPENOOD, ids=lambda path: path.stem)
def test_openood_lists_are_read_in_its_layout(path, tmp_path):
    data = read(path)
    write_lists(tmp_path, data)
    for spec in all_sets(data):
        images = load_set(spec, tmp_path, size=data.size)
        assert images.image_shape == (data.size, data.size)
        assert len(images) == 2
    for part in ("train", "validation", "test"):
        assert load_set(data.names[part], tmp_path, size=data.size).labels.tolist() == [0, 1]
    names = [spec.name for spec in (*data.near, *data.far, *data.shifted)]
    assert len(set(names)) == len(names)
    assert all(names)


def test_a_list_whose_files_are_missing_is_one_line(tmp_path):
    spec = read(FOLDER / "openood_imagenet.yaml").near[0]
    with pytest.raises(UserError, match=r"no such file.*test_ssb_hard\.txt"):
        load_set(spec, tmp_path, "near[0]", size=8)
    list_file = tmp_path / spec.source
    list_file.parent.mkdir(parents=True)
    list_file.write_text("ssb_hard/a.png -1\nssb_hard/b.png -1\n")
    with pytest.raises(UserError, match=r"2 of 2|cannot be read|cannot read") as raised:
        load_set(spec, tmp_path, "near[0]", size=8)
    assert "\n" not in str(raised.value)
    assert "ssb_hard/a.png" in str(raised.value) or "ssb_hard/b.png" in str(raised.value)
