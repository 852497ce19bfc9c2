"""Tar shards and Hugging Face data sets: the same images as a folder's, each at its own index."""

import io
import json
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from robust_ood.data import EvaluationLoader, Reading, TrainingLoader, load_set
from robust_ood.data.sources.hugging_face import ArrowImages
from robust_ood.errors import UserError

CLASSES = ("cat", "dog", "owl")


def pictures(count=12):
    source = np.random.default_rng(3)
    return [source.integers(0, 256, (20 + n % 3, 24, 3), dtype=np.uint8) for n in range(count)]


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def write_shard(path, samples):
    """Write samples, each a mapping from suffix to bytes."""
    with tarfile.open(path, "w") as archive:
        for number, sample in enumerate(samples):
            for suffix, content in sample.items():
                member = tarfile.TarInfo(f"part/{path.stem}_{number:04}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def write_folder(root, images):
    for number, pixels in enumerate(images):
        path = root / "folder" / CLASSES[number % 3] / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels))


def write_shards(root, images):
    samples = []
    for number, pixels in enumerate(images):
        samples.append({"png": encoded(pixels), "cls": str(number % 3).encode()})
    write_shard(root / "pets-000.tar", samples[:5])
    write_shard(root / "pets-001.tar", samples[5:])


def write_arrow(root, images):
    datasets = pytest.importorskip("datasets")
    rows = {
        "photo": [{"bytes": encoded(pixels), "path": None} for pixels in images],
        "kind": [number % 3 for number in range(len(images))],
        "note": ["" for _ in images],
    }
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "kind": datasets.ClassLabel(names=list(CLASSES)),
            "note": datasets.Value("string"),
        }
    )
    dataset = datasets.Dataset.from_dict(rows, features)
    dataset.save_to_disk(root / "arrow")
    dataset.to_parquet(root / "pets.parquet")


SOURCES = {
    "range": (write_shards, lambda root: "pets-{000..001}.tar"),
    "pattern": (write_shards, lambda root: "pets-*.tar"),
    "saved": (write_arrow, lambda root: "arrow"),
    "parquet": (
        write_arrow,
        lambda root: {
            "source": "hf:parquet",
            "arguments": {
                "data_files": str(root / "pets.parquet"),
                "split": "train",
                "cache_dir": str(root / "cache"),
            },
        },
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_each_image_is_at_its_index(kind, tmp_path):
    images = pictures()
    write, source = SOURCES[kind]
    write(tmp_path, images)
    write_folder(tmp_path, images)
    # The folder has its images by class.
    order = np.argsort(np.arange(12) % 3, kind="stable")
    by_folder = load_set("folder", tmp_path, size=16)
    read = load_set(source(tmp_path), tmp_path, size=16, memory_limit=0)
    assert not read.in_memory
    assert torch.equal(read.read(torch.from_numpy(order)), by_folder.read(torch.arange(12)))
    assert read.labels.tolist() == [number % 3 for number in range(12)]
    if read.class_names:
        assert read.class_names == CLASSES


@pytest.mark.parametrize("kind", ["range", "saved"])
def test_batches_do_not_depend_on_workers(kind, tmp_path):
    write, source = SOURCES[kind]
    write(tmp_path, pictures())
    images = load_set(source(tmp_path), tmp_path, size=16, memory_limit=0)
    in_memory = load_set(source(tmp_path), tmp_path, size=16)
    batches = []
    for read, workers in ((images, 0), (images, 2), (in_memory, 0)):
        reading = Reading(workers=workers)
        loader = TrainingLoader(
            read, None, batch_size=4, outlier_batch_size=0, seed=1, reading=reading
        )
        evaluation = EvaluationLoader(read, batch_size=5, reading=reading)
        pixels = [batch.images for batch in loader] + [batch.images for batch in evaluation]
        batches.append(torch.cat(pixels))
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[0], batches[2])


def test_webdatasets_own_shards_are_read(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    images = pictures()
    with webdataset.TarWriter(str(tmp_path / "pets.tar")) as writer:
        for number, pixels in enumerate(images):
            writer.write({"__key__": f"{number:04}", "png": pixels, "cls": number % 3})
    read = load_set("pets.tar", tmp_path, size=16)
    samples = list(
        webdataset.WebDataset(str(tmp_path / "pets.tar"), shardshuffle=False).decode("pil")
    )
    assert [sample["cls"] for sample in samples] == read.labels.tolist()
    assert len(read) == 12


def test_labels_of_json_and_samples_without_images(tmp_path):
    image = encoded(pictures(1)[0])
    described = json.dumps({"label": 2, "caption": "an owl"}).encode()
    write_shard(
        tmp_path / "s.tar", [{"jpg": image, "json": described}, {"txt": b"a note on the shard"}]
    )
    read = load_set("s.tar", tmp_path, size=16)
    assert read.labels.tolist() == [2]
    assert read.name == "s"


def write_members(path, members):
    """Write members, pairs of name and bytes, in their order."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_members_that_begin_with_a_dot_part_no_sample(tmp_path):
    """As tar of macOS writes them: `._NAME` before each file."""
    members = []
    for number, pixels in enumerate(pictures(3)):
        for suffix, content in (("png", encoded(pixels)), ("cls", str(number).encode())):
            members.append((f"./._{number:04}.{suffix}", b"attributes"))
            members.append((f"./{number:04}.{suffix}", content))
    write_members(tmp_path / "s.tar", members)
    assert load_set("s.tar", tmp_path, size=16).labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("some", [0, 1])
def test_labels_apart_from_their_images_are_not_lost(some, tmp_path):
    image = encoded(pictures(1)[0])
    members = [("9.png", image), ("9.cls", b"1")] * some
    members += [("0.png", image), ("1.png", image), ("0.cls", b"0"), ("1.cls", b"1")]
    write_members(tmp_path / "s.tar", members)
    with pytest.raises(UserError, match=r"2 labels in the shards have no image .*--sort=name"):
        load_set("s.tar", tmp_path, "train", size=16)


def test_a_broken_image_is_left_out_and_named(tmp_path):
    good = encoded(pictures(1)[0])
    write_shard(tmp_path / "s.tar", [{"png": good}, {"png": good[:60]}, {"png": b""}])
    images = load_set({"source": "s.tar", "max_unreadable": 0.7}, tmp_path, size=16, memory_limit=0)
    read = images.take(torch.arange(3))
    assert read.indices.tolist() == [0]
    assert "image 1, at byte" in read.unreadable[0]
    assert "s.tar" in read.unreadable[0]
    assert "empty file" in read.unreadable[1]


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def overwritten(path, start):
    content = bytearray(path.read_bytes())
    content[start : start + 400] = b"x" * 400
    path.write_bytes(bytes(content))


def samples_with_a_fault(image):
    """By fault, the samples of a shard."""
    return {
        "empty": [],
        "no images": [{"txt": b"words"}],
        "some labels": [{"png": image, "cls": b"1"}, {"png": image}],
        "words": [{"png": image, "cls": b"owl"}],
        "no json": [{"png": image, "json": b"{"}],
    }


def damaged(root, what):
    """Write a shard with one fault."""
    image = encoded(pictures(1)[0])
    sound = [{"png": image, "cls": b"1"}, {"png": image, "cls": b"0"}]
    shard = write_shard(root / "s.tar", samples_with_a_fault(image).get(what, sound))
    if what == "cut":
        cut(shard, 2000)
    elif what == "end":
        cut(shard, _members_end(shard))
    elif what == "header":
        overwritten(shard, _second_header(shard))
    elif what == "gzip":
        with tarfile.open(root / "s.tar.gz", "w:gz") as archive:
            archive.add(shard, "inner.png")
    elif what == "text":
        shard.write_text("no archive")


def _members_end(shard):
    with tarfile.open(shard) as archive:
        last = archive.getmembers()[-1]
    return last.offset_data + -(-last.size // 512) * 512


def _second_header(shard):
    with tarfile.open(shard) as archive:
        return archive.getmembers()[2].offset


@pytest.mark.parametrize(
    ("what", "source", "message"),
    [
        ("empty", "s.tar", "s.tar holds no images"),
        ("no images", "s.tar", "s.tar holds no images"),
        ("some labels", "s.tar", "1 of the 2 images in the shards have a label"),
        ("words", "s.tar", "expected an integer label, got 'owl'"),
        ("no json", "s.tar", "cannot read the shard"),
        ("cut", "s.tar", "cannot read the shard .*unexpected end of data"),
        ("end", "s.tar", "its end mark is missing"),
        ("header", "s.tar", "the header at byte .* is damaged"),
        ("gzip", "s.tar.gz", "it is compressed"),
        ("text", "s.tar", "cannot read the shard"),
        ("", "t.tar", "cannot read the shard .*t.tar .no such file"),
        ("", "t-{0..3}.tar", "t-0.tar .no such file"),
        ("", "t-*.tar", "no shard is named like"),
    ],
)
def test_bad_shards_are_one_line(what, source, message, tmp_path):
    damaged(tmp_path, what)
    with pytest.raises(UserError, match=message) as raised:
        load_set(source, tmp_path, "test", size=16)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("arrow", {"image": "img"}, "arguments: image: expected one of photo, kind, note"),
        ("arrow", {"image": "kind"}, "arguments: image: kind does not hold images"),
        ("arrow", {"label": "note"}, "arguments: label: note does not hold integers"),
        ("arrow", {"split": "train"}, "arguments: expected image and label .* got split"),
        ("parts", {}, "holds several parts; expected one of parts/test, parts/train"),
        ("words", {}, "has no column of images; it has text"),
        ("none", {}, "none holds no images"),
        ("hf:parquet", {}, "expected a split"),
        ("hf:parquet", {"split": "train", "streaming": True}, "a stream has no index"),
        ("hf:parquet", {"split": "train", "data_files": "/none.parquet"}, "datasets cannot load"),
    ],
)
def test_bad_hugging_face_sets_are_one_line(source, arguments, message, tmp_path):
    datasets = pytest.importorskip("datasets")
    write_arrow(tmp_path, pictures(3))
    words = datasets.Dataset.from_dict({"text": ["a"]})
    words.save_to_disk(tmp_path / "words")
    datasets.DatasetDict({"train": words, "test": words}).save_to_disk(tmp_path / "parts")
    datasets.load_from_disk(tmp_path / "arrow").select([]).save_to_disk(tmp_path / "none")
    with pytest.raises(UserError, match=message) as raised:
        load_set({"source": source, "arguments": arguments}, tmp_path, "test", size=16)
    assert "\n" not in str(raised.value)


def test_a_row_without_an_image_is_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"bytes": encoded(pictures(1)[0]), "path": None}, None, None]
    features = datasets.Features({"photo": datasets.Image()})
    datasets.Dataset.from_dict({"photo": rows}, features).save_to_disk(tmp_path / "arrow")
    source = {"source": "arrow", "max_unreadable": 0.7}
    images = load_set(source, tmp_path, size=16, memory_limit=0)
    read = images.take(torch.arange(3))
    assert read.indices.tolist() == [0]
    assert read.unreadable[0].startswith("row 1 (no image")


def test_a_row_of_neither_bytes_nor_path_holds_no_image():
    """As other programs than the library may write it."""
    images = ArrowImages.__new__(ArrowImages)
    images.column = [{"photo": {"bytes": None, "path": None}}]
    images.image = "photo"
    with pytest.raises(ValueError, match="no image"):
        images.encoded(0)


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"robust-ood\[streams\]"):
        load_set("hf:someone/something", tmp_path, "far[0]", size=16)
