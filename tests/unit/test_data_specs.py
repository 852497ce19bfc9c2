"""What a config says of a set: sizes, labels, exclusions, counts, data sets of others, and sets
named twice.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from robust_ood.data import OODData, SetSpec, load_set
from robust_ood.errors import UserError


@pytest.fixture
def root(tmp_path):
    images = np.zeros((10, 8, 8, 3), np.uint8)
    images[:, :, :, 0] = np.arange(10)[:, None, None]
    np.save(tmp_path / "pool.npy", images)
    np.savez(tmp_path / "train.npz", images=images, labels=np.arange(10) % 3)
    np.save(tmp_path / "labels.npy", np.arange(10) % 2)
    (tmp_path / "leave.txt").write_text("3\n\n7 # a duplicate\n")
    return tmp_path


def numbers(images):
    return images.read(torch.arange(len(images)))[:, 0, 0, 0].tolist()


def test_exclude_and_count(root):
    assert numbers(load_set(SetSpec("pool", exclude="leave.txt"), root)) == [0, 1, 2, 4, 5, 6, 8, 9]
    few = load_set(SetSpec("pool", count=4), root)
    assert len(few) == 4
    assert numbers(few) == sorted(set(numbers(few)))
    assert numbers(few) == numbers(load_set(SetSpec("pool", count=4), root))
    assert any(
        numbers(load_set(SetSpec("pool", count=4, seed=s), root)) != numbers(few) for s in (1, 2, 3)
    )
    both = load_set(SetSpec("pool", exclude="leave.txt", count=8, name="few"), root)
    assert (both.name, numbers(both)) == ("few", [0, 1, 2, 4, 5, 6, 8, 9])


def test_labels_from_their_own_file(root):
    assert load_set(SetSpec("pool", labels="labels.npy"), root).labels.tolist() == [0, 1] * 5
    np.save(root / "short.npy", np.zeros(9, int))
    with pytest.raises(UserError, match=r"pool: expected 10 integers as labels, got shape \(9,\)"):
        load_set(SetSpec("pool", labels="short.npy"), root)


def test_arrays_of_another_size_are_resized(root):
    found = load_set(SetSpec("pool", size=4), root)
    assert found.image_shape == (4, 4)
    assert numbers(found) == list(range(10))
    assert load_set("pool", root, size=8).image_shape == (8, 8)
    assert isinstance(load_set("pool", root, size=8).images, np.memmap)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count: expected .* >= 1, got 0"),
        ({"count": 11}, "count 11 is more than the 10 images"),
        ({"exclude": "nowhere.txt"}, "exclude: cannot read"),
        ({"exclude": "bad.txt"}, r"line 2 of .*bad.txt: expected an index in 0..9, got '10'"),
        ({"max_unreadable": 1.5}, r"max_unreadable: expected .* \[0, 1\], got 1.5"),
        ({"size": -3}, "size: expected .* >= 1, got -3"),
        ({"labels": "train.npz"}, "archive of arrays"),
        ({"labels": "leave.txt"}, "not a readable .npy"),
    ],
)
def test_unusable_settings(root, settings, message):
    (root / "bad.txt").write_text("1\n10\n")
    with pytest.raises(UserError, match=message) as caught:
        load_set(SetSpec("pool", **settings), root, "train")
    assert "\n" not in str(caught.value)


def test_a_size_is_wanted_where_images_may_have_any(root):
    (root / "folder").mkdir()
    Image.new("RGB", (9, 9)).save(root / "folder" / "a.png")
    with pytest.raises(UserError, match=r"data\.size: not given.*folder"):
        load_set("folder", root, "far")
    assert load_set("folder", root, "far", size=5).image_shape == (5, 5)


def test_a_file_that_is_no_set(root):
    (root / "notes.md").write_text("x")
    with pytest.raises(
        UserError, match=r"data\.far: expected .npz, .npy, an image list .*, got .*notes\.md"
    ):
        load_set("notes.md", root, "far")


@pytest.mark.parametrize("name", ["svnh", "cifr10", "cifar10/trian", "photographs/tets"])
def test_a_misspelt_name_shows_the_nearest(root, name):
    nearest = {
        "svnh": "svhn",
        "cifr10": "cifar10",
        "cifar10/trian": "cifar10/train",
        "photographs/tets": "photographs/test",
    }
    for folder in (root, root / "absent"):
        with pytest.raises(UserError, match=f"did you mean '{nearest[name]}'"):
            load_set(name, folder)


@pytest.mark.parametrize("field", ["outliers", "near", "far", "validation_ood"])
def test_an_unknown_part_names_its_field(root, field):
    with pytest.raises(
        UserError, match=rf"data\.{field}: unknown name 'svhn/tset'; did you mean 'svhn/test'"
    ):
        OODData(root=root, **{field: "svhn/tset" if field == "outliers" else ["svhn/tset"]})


def test_a_file_in_a_folder_that_is_called_like_a_catalogue_entry(root):
    (root / "svhn").mkdir()
    np.savez(root / "svhn" / "test.npz", images=np.zeros((3, 8, 8, 3), np.uint8))
    assert len(load_set("svhn/test.npz", root)) == 3
    with pytest.raises(
        UserError, match=r"svhn/test: no test_32x32\.mat"
    ):  # the part of that name, not the file
        load_set("svhn/test", root)
    with pytest.raises(UserError, match=r"svhn/test\.npz is also in data\.validation_ood"):
        OODData(root=root, far=["svhn/test.npz"], validation_ood=[str(root / "svhn" / "test.npz")])
    OODData(root=root, far=["svhn/test.npz"], outliers="svhn/test-all")


class Numbered(Dataset):
    def __init__(self, count=6, kind="pillow", damaged=()):
        self.count, self.kind, self.damaged = count, kind, damaged

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.damaged:
            raise RuntimeError("disk on fire")
        pixels = np.full((8, 8, 3), index, np.uint8)
        image = {
            "pillow": lambda: Image.fromarray(pixels),
            "array": lambda: pixels,
            "floats": lambda: torch.from_numpy(pixels).permute(2, 0, 1) / 255,
            "grey": lambda: torch.from_numpy(pixels[None, ..., 0]),
            "normalised": lambda: torch.from_numpy(pixels).permute(2, 0, 1) - 3.5,
        }[self.kind]()
        return image, index % 2


class Bare(Numbered):
    def __getitem__(self, index):
        return super().__getitem__(index)[0]


def by_class_path(monkeypatch, dataset, **arguments):
    import sys
    import types

    module = types.ModuleType("somebodys_code")
    module.Pets = dataset
    monkeypatch.setitem(sys.modules, "somebodys_code", module)
    return SetSpec("somebodys_code.Pets", size=8, arguments=arguments, max_unreadable=0.5)


@pytest.mark.parametrize("kind", ["pillow", "array", "floats", "grey"])
def test_any_torch_data_set(monkeypatch, tmp_path, kind):
    found = load_set(by_class_path(monkeypatch, Numbered, kind=kind), tmp_path)
    assert numbers(found) == list(range(6))
    assert found.labels.tolist() == [0, 1] * 3
    assert found.in_memory
    assert load_set(by_class_path(monkeypatch, Bare, kind=kind), tmp_path).labels is None


def test_a_torch_data_set_that_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(Numbered, "targets", [0, 1, 0, 1, 0, 1], raising=False)
    with pytest.warns(UserWarning, match=r"item 2 \(RuntimeError: disk on fire\)"):
        found = load_set(by_class_path(monkeypatch, Numbered, damaged=(2,)), tmp_path)
    assert numbers(found) == [0, 1, 3, 4, 5]
    assert found.labels.tolist() == [0, 1, 1, 0, 1]
    with pytest.raises(UserError, match=r"cannot build somebodys_code\.Pets .*colour"):
        load_set(by_class_path(monkeypatch, Numbered, colour=1), tmp_path)
    with (
        pytest.warns(UserWarning, match="without normalisation"),
        pytest.raises(UserError, match="cannot be read"),
    ):
        load_set(by_class_path(monkeypatch, Numbered, kind="normalised"), tmp_path)
    with pytest.raises(UserError, match=r"cannot build somebodys_code\.Cats"):
        load_set(SetSpec("somebodys_code.Cats", size=8), tmp_path)
    with pytest.raises(UserError, match="holds no images"):
        load_set(by_class_path(monkeypatch, Numbered, count=0), tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"outliers": "pool", "far": ["pool"]},
        {"outliers": "pool", "near": ["pool.npy"]},
        {"outliers": SetSpec("pool", count=3), "near": [SetSpec("pool", exclude="leave.txt")]},
        {"outliers": "tinyimagenet/train", "near": ["tinyimagenet"]},
        {"outliers": "photographs/test", "far": ["photographs/test"]},
        {"validation_ood": ["pool"], "far": ["pool"]},
        {"validation_ood": ["pool"], "far": [SetSpec("pool", name="other")]},
        {"validation_ood": ["svhn"], "near": ["svhn/test"]},
    ],
)
def test_outliers_that_are_also_a_test_are_refused_unless_forced(root, settings):
    with pytest.raises(
        UserError,
        match=r"data\.(near|far): .* is also in data\.(outliers|validation_ood).*allow_overlap",
    ):
        OODData(root=root, **settings)
    OODData(root=root, allow_overlap=True, **settings)


def test_different_sets_of_one_kind_are_not_refused(root):
    OODData(
        root=root, outliers="photographs/outliers", far=["photographs/test", "svhn"], near=["pool"]
    )


@pytest.mark.parametrize(
    "fields", [("far", "far"), ("near", "far"), ("validation_ood", "validation_ood")]
)
def test_two_ood_sets_of_one_name_are_refused(root, fields):
    (root / "dark").mkdir()
    np.savez(root / "dark" / "pool.npz", images=np.zeros((3, 8, 8, 3), np.uint8))

    def read(second):
        sets = {field: [] for field in fields}
        for field, spec in zip(fields, ("pool", second), strict=True):
            sets[field].append(spec)
        data = OODData(root=root, **sets)
        if fields[0] == "validation_ood":
            return [images.name for images in data.validation_ood_sets()]
        return [images.name for _, images in data.ood_sets()]

    message = (
        rf"data\.{fields[1]}: dark/pool and pool are both called 'pool'.*accepted: .*name: pool-2"
    )
    with pytest.raises(UserError, match=message):
        read("dark/pool")
    assert read(SetSpec("dark/pool", name="dark")) == ["pool", "dark"]


def test_sets_of_different_sizes_are_refused_before_training(root):
    data = OODData(train="train", outliers="noise/uniform", root=root, num_classes=3)
    with pytest.raises(
        UserError,
        match=r"data\.outliers: images of uniform-noise are 32 x 32, those of train 8 x 8",
    ):
        data.setup("fit")
    data = OODData(train="train", outliers="noise/uniform", root=root, num_classes=3, size=8)
    data.setup("fit")
    assert data.outliers().image_shape == (8, 8)
