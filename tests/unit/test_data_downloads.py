"""Downloads against a small host of our own that can refuse, cut off, lie and resume; archives that
mean harm.
"""

import contextlib
import errno
import gzip
import hashlib
import http.server
import io
import os
import shutil
import socket
import tarfile
import threading
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from robust_ood.cli import main
from robust_ood.data import CATALOGUE, GROUPS
from robust_ood.data.catalogue import Link, download
from robust_ood.data.catalogue.download import fetch
from robust_ood.data.catalogue.unpack import unpack
from robust_ood.errors import UserError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Host(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; the path's first part says how."""

    ranges: list

    def do_GET(self):
        how = self.path.strip("/").split("/")[0]
        wanted = self.headers.get("Range")
        type(self).ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and how != "norange" else 0
        if how == "missing":
            self.send_error(404)
        elif how == "page":
            self.answer(200, b"<html>too many requests</html>", "text/html; charset=utf-8")
        elif start >= len(CONTENT):
            self.send_error(416)
        elif how == "cut":
            self.answer(
                206 if start else 200, CONTENT[start:], send=min(1_000_000, len(CONTENT) - start)
            )
        else:
            self.answer(206 if start else 200, CONTENT[start:])

    def answer(self, code, body, kind="application/octet-stream", send=None):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:send])

    def log_message(self, *arguments):
        """Keep quiet."""


@pytest.fixture
def host():
    Host.ranges = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def refused():
    """An address that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/x"


def fails(words, *arguments):
    with pytest.raises(UserError) as caught:
        fetch(*arguments, "ask its authors")
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_download_shows_progress_and_is_not_repeated(host, tmp_path):
    seen = []
    path = fetch(
        [f"{host}/x"],
        tmp_path / "new" / "x.bin",
        MD5,
        "",
        lambda done, total: seen.append((done, total)),
    )
    assert path.read_bytes() == CONTENT
    assert [total for _, total in seen] == [len(CONTENT)] * len(seen)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == len(CONTENT)
    assert [p.name for p in path.parent.iterdir()] == ["x.bin"]
    fetch([f"{host}/x"], path, MD5, "")
    assert Host.ranges == [None]


@pytest.mark.parametrize("how", ["x", "norange"])
def test_a_download_goes_on_where_it_stopped(host, tmp_path, how):
    fails(
        ["ended after 1000000 of 3000000", "1000000 bytes are kept"],
        [f"{host}/cut"],
        tmp_path / "x.bin",
        MD5,
    )
    assert not (tmp_path / "x.bin").exists()
    assert (tmp_path / "x.bin.part").read_bytes() == CONTENT[:1_000_000]
    assert fetch([f"{host}/{how}"], tmp_path / "x.bin", MD5, "").read_bytes() == CONTENT
    assert Host.ranges == [None, "bytes=1000000-"]


def test_many_interruptions(host, tmp_path):
    for kept in (1_000_000, 2_000_000):
        fails([f"{kept} bytes are kept"], [f"{host}/cut"], tmp_path / "x.bin", MD5)
    assert fetch([f"{host}/cut"], tmp_path / "x.bin", MD5, "").read_bytes() == CONTENT


def test_a_part_that_was_whole_already(host, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(CONTENT)
    assert fetch([f"{host}/x"], tmp_path / "x.bin", MD5, "").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(host, tmp_path):
    wrong = "0" * 32
    fails([MD5, wrong, "x.bin", "removed"], [f"{host}/x"], tmp_path / "x.bin", wrong)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x.bin").write_bytes(b"old")
    fails(["removed"], [f"{host}/x"], tmp_path / "x.bin", MD5)
    assert fetch([f"{host}/x"], tmp_path / "x.bin", MD5, "").read_bytes() == CONTENT


def test_hosts_that_refuse(host, refused, tmp_path):
    fails(["refused", "by hand: ask its authors"], [refused], tmp_path / "x.bin", MD5)
    fails(["Not Found", "refused"], [f"{host}/missing", refused], tmp_path / "x.bin", MD5)
    fails(["a web page instead of the file"], [f"{host}/page"], tmp_path / "x.bin", None)
    fails(["unknown url type"], ["nonsense"], tmp_path / "x.bin", None)
    assert list(tmp_path.iterdir()) == []


def test_the_next_host_is_tried(host, refused, tmp_path):
    urls = [refused, f"{host}/missing", f"{host}/x"]
    assert fetch(urls, tmp_path / "x.bin", MD5, "").read_bytes() == CONTENT


@pytest.mark.parametrize("name", [name for name, entry in CATALOGUE.items() if entry.links])
def test_a_refused_connection_ends_each_download_with_one_line_and_the_manual_steps(
    name, refused, tmp_path, monkeypatch, capsys
):
    entry = CATALOGUE[name]
    links = tuple(replace(link, urls=(refused,)) for link in entry.links)
    monkeypatch.setitem(CATALOGUE, name, replace(entry, links=links))
    assert main(["data", "download", name, "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "refused" in error
    assert entry.manual in error
    assert str(tmp_path / name) in error


def test_a_set_is_downloaded_with_its_ood_test_sets(tmp_path, monkeypatch, capsys):
    (tmp_path / "host.bin").write_bytes(CONTENT)
    link = Link("host.bin", ((tmp_path / "host.bin").as_uri(),), MD5, unpack=False)
    for name, entry in CATALOGUE.items():
        links = (link,) if entry.links else ()
        monkeypatch.setitem(CATALOGUE, name, replace(entry, links=links))
    for name, known in (("cifar10", {"cifar10"}), ("imagenet", set())):
        root = tmp_path / name
        assert main(["data", "download", name, "--ood", "true", "--root", str(root)]) == 0
        groups = GROUPS[name]
        assert {path.name for path in root.iterdir()} == known | {*groups.near, *groups.far}
    assert main(["data", "download", "svhn", "--ood", "true", "--root", str(tmp_path)]) == 2
    assert "ood: no OOD test sets are known for svhn; known: cifar10" in capsys.readouterr().err


def test_links_are_whole():
    for entry in CATALOGUE.values():
        for link in entry.links:
            assert link.urls
            assert all(url.startswith(("https://", "http://")) for url in link.urls)
            assert link.md5 is None or (
                len(link.md5) == 32 and set(link.md5) <= set("0123456789abcdef")
            )
            assert not link.folder.startswith(("/", ".."))


@pytest.mark.parametrize(
    ("body", "words"), [(CONTENT, ["damaged archive"]), (b"", ["damaged archive"])]
)
def test_a_download_that_is_no_archive(tmp_path, monkeypatch, capsys, body, words):
    (tmp_path / "x.zip").write_bytes(body)
    link = Link("x.zip", ((tmp_path / "x.zip").as_uri(),), None)
    monkeypatch.setitem(CATALOGUE, "svhn", replace(CATALOGUE["svhn"], links=(link,)))
    assert main(["data", "download", "svhn", "--root", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words)
    assert error.count("\n") == 1


# Archives
# -------------------------------------------------------------------------------------------------------------


def tar(path, *members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content
                archive.addfile(info)
    return path


def zipped(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            if isinstance(content, tuple):
                info.external_attr, content = content[0] << 16, content[1]
            archive.writestr(info, content)
    return path


def listing(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.tar.xz", "a.tar.bz2", "a.zip"])
def test_sound_archives(tmp_path, name):
    members = [("set/a.txt", b"a" * 1000), ("set/deep/er/b.bin", b"\0\1"), ("c", b"")]
    if name.endswith("zip"):
        archive = zipped(tmp_path / name, *members)
    else:
        archive = tar(
            tmp_path / name, *members, mode="w:" + {"tar": "", "tgz": "gz"}.get(name[2:], name[6:])
        )
    for _ in range(2):  # a second time replaces what is there
        unpack(archive, tmp_path / "out")
        assert listing(tmp_path / "out") == dict(members)
        assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_single_compressed_file(tmp_path):
    (tmp_path / "x-ubyte.gz").write_bytes(gzip.compress(CONTENT))
    unpack(tmp_path / "x-ubyte.gz", tmp_path / "out")
    assert listing(tmp_path / "out") == {"x-ubyte": CONTENT}


LINKS = [
    (tarfile.SYMTYPE, "/etc/passwd"),
    (tarfile.SYMTYPE, "../.."),
    (tarfile.LNKTYPE, "../x"),
    (tarfile.CHRTYPE, ""),
]


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/tmp/evil-absolute", "..\\evil", "C:\\evil", "a/.."]
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_paths_out_of_the_folder(tmp_path, name, kind):
    make = {
        "tar": lambda *m: tar(tmp_path / "a.tar.gz", *m),
        "zip": lambda *m: zipped(tmp_path / "a.zip", *m),
    }[kind]
    archive = make(("fine.txt", b"x"), (name, b"evil"))
    with pytest.raises(UserError, match="points out of the folder; nothing was unpacked"):
        unpack(archive, tmp_path / "deep" / "out")
    assert listing(tmp_path / "deep") == {}
    assert {path.name for path in tmp_path.iterdir()} == {archive.name, "deep"}


@pytest.mark.parametrize("link", LINKS)
def test_links_and_devices_in_tar(tmp_path, link):
    archive = tar(tmp_path / "a.tar.gz", ("fine.txt", b"x"), ("link", link), ("link/evil", b"x"))
    with pytest.raises(UserError, match="'link' is a link or a device; nothing was unpacked"):
        unpack(archive, tmp_path / "out")
    assert listing(tmp_path / "out") == {}


def test_links_in_zip(tmp_path):
    archive = zipped(tmp_path / "a.zip", ("link", (0o120777, b"/etc")), ("link/evil", b"x"))
    with pytest.raises(UserError, match="'link' is a link or a device"):
        unpack(archive, tmp_path / "out")
    assert listing(tmp_path / "out") == {}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip", "x.gz"])
def test_truncated_archives(tmp_path, name, share):
    path = tmp_path / name
    members = [
        (f"{number}.bin", CONTENT[number * 5000 : (number + 1) * 5000]) for number in range(20)
    ]
    if name == "x.gz":
        path.write_bytes(gzip.compress(CONTENT[:100_000]))
    elif name == "a.zip":
        zipped(path, *members)
    else:
        tar(path, *members, mode="w:gz" if name.endswith("gz") else "w")
    if name == "a.tar" and share == 0.999:
        share = 0.915  # beyond that only padding is missing
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match="damaged archive") as caught:
        unpack(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert listing(tmp_path / "out") == {}


def test_a_tar_cut_off_between_two_members(tmp_path):
    path = tar(tmp_path / "a.tar", ("a", b"x" * 512), ("b", b"y" * 512), mode="w")
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(UserError, match="its end is missing"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("name", ["a.tar.xz", "a.tar.bz2", "a.zip", "a.tar.gz"])
def test_any_flipped_byte_is_damage_or_harmless(tmp_path, name):
    members = [("a.bin", CONTENT[:3000]), ("b.bin", CONTENT[3000:9000])]
    if name == "a.zip":
        path = zipped(tmp_path / name, *members)
    else:
        path = tar(tmp_path / name, *members, mode=f"w:{name[6:]}")
    whole = path.read_bytes()
    for place in range(0, len(whole), 211):
        damaged = bytearray(whole)
        damaged[place] ^= 0x3C
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            unpack(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "Permission denied"),
    ],
)
@pytest.mark.parametrize("name", ["a.tar", "a.zip", "x.gz"])
def test_what_the_system_refuses_is_not_called_damage(tmp_path, monkeypatch, name, number, words):
    path = tmp_path / name
    if name == "x.gz":
        path.write_bytes(gzip.compress(CONTENT))
    elif name == "a.zip":
        zipped(path, ("a", b"x" * 500))
    else:
        tar(path, ("a", b"x" * 500), mode="w")

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shutil, "copyfileobj", refuse)
    with pytest.raises(UserError) as caught:
        unpack(path, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot unpack it into {tmp_path / 'out'} (")
    assert words in message
    assert listing(tmp_path / "out") == {}


def test_a_full_disk_ends_a_download_at_once_and_names_the_file(tmp_path, monkeypatch):
    (tmp_path / "host.bin").write_bytes(CONTENT)

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download, "_write_answer", refuse)
    urls = [(tmp_path / "host.bin").as_uri()] * 3
    with pytest.raises(UserError, match=r"cannot write .*here\.bin\.part \(No space left"):
        fetch(urls, tmp_path / "here.bin", None, "by hand")


def test_other_files_are_no_archives(tmp_path):
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    with pytest.raises(UserError, match=r"unknown archive format; accepted: \.zip"):
        unpack(tmp_path / "x.rar", tmp_path / "out")


# Every entry of the catalogue, through the command
# --------------------------------------------------------------------


def harmful(path, kind):
    """Write an archive, of the kind that its name says, that is cut short or has a member outside
    of the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".zip"):
        zipped(path, ("../evil" if kind == "escaping" else "fine", CONTENT[:9000]))
    elif path.name.endswith((".tar", ".tar.gz", ".tgz")):
        name = "../evil" if kind == "escaping" else "fine"
        tar(path, (name, CONTENT[:9000]), mode="w" if path.name.endswith(".tar") else "w:gz")
    else:
        path.write_bytes(gzip.compress(CONTENT[:9000]))  # one file, which has no path of its own
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    return path


DOWNLOADED = [name for name, entry in CATALOGUE.items() if entry.links]
FILES = [name for name in DOWNLOADED if not any(link.unpack for link in CATALOGUE[name].links)]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["wrong checksum", "truncated"])
def test_each_bare_files_bad_download_ends_with_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, name, kind
):
    entry = CATALOGUE[name]
    link = entry.links[0]
    (tmp_path / link.file).write_bytes(CONTENT[:1000] if kind == "truncated" else CONTENT[::-1])
    links = (replace(link, urls=((tmp_path / link.file).as_uri(),), md5=MD5),)
    monkeypatch.setitem(CATALOGUE, name, replace(entry, links=links))
    assert main(["data", "download", name, "--root", str(tmp_path / "data")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{link.file}: its MD5 sum is" in line
    assert f"not {MD5}; the file was removed" in line
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", [name for name in DOWNLOADED if name not in FILES])
@pytest.mark.parametrize("kind", ["wrong checksum", "truncated", "escaping"])
def test_each_entrys_bad_download_ends_with_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, name, kind
):
    entry = CATALOGUE[name]
    link = next(link for link in entry.links if link.unpack)
    if kind == "escaping" and not link.file.endswith((".zip", ".tar", ".tar.gz", ".tgz")):
        pytest.skip(f"{link.file} is one compressed file, whose content has no path")
    body = harmful(tmp_path / "host" / link.file, kind)
    md5 = "0" * 32 if kind == "wrong checksum" else hashlib.md5(body.read_bytes()).hexdigest()
    links = (replace(link, urls=(body.as_uri(),), md5=md5),)
    monkeypatch.setitem(CATALOGUE, name, replace(entry, links=links))
    assert main(["data", "download", name, "--root", str(tmp_path / "data")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    said = {
        "wrong checksum": f"not {md5}; the file was removed",
        "truncated": "damaged archive",
        "escaping": "points out",
    }
    assert link.file in line
    assert said[kind] in line
    kept = (
        {}
        if kind == "wrong checksum"
        else {str((tmp_path / "data" / name / link.folder / link.file).resolve())}
    )
    files = {str(path.resolve()) for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert files == set(kept)
    assert {path.name for path in tmp_path.iterdir()} == {"host", "data"}
