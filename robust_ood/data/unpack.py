"""Archives unpacked without letting them write anywhere else."""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from robust_ood.errors import UserError

_DAMAGE = (
    OSError,
    EOFError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    NotImplementedError,
)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a `.zip`, a `.tar` of any compression, or a single `.gz` into a folder.

    Only plain files and folders are unpacked. Nothing appears in the folder unless the whole
    archive is sound: members go to a hidden folder beside their place first.

    Raises:
        UserError: an archive that is damaged, of another kind, or that has a member with a path out
            of the folder, a link or a device. The message names the member.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = _kind(archive)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as temporary:
        try:
            kind(archive, Path(temporary))
        except UserError:
            raise
        except _DAMAGE as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{archive}: damaged archive ({reason}); remove it and download it again"
            ) from error
        _merge(Path(temporary), folder)


def _kind(archive: Path) -> Callable[[Path, Path], None]:
    name = archive.name.lower()
    if name.endswith(".zip"):
        return _zip
    if name.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
        return _tar
    if name.endswith(".gz"):
        return _gz
    raise UserError(
        f"{archive}: no archive of a known kind; .zip, .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz and .gz are"
    )


def _zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            mode = stat.S_IFMT(member.external_attr >> 16)
            plain = mode in (0, stat.S_IFREG, stat.S_IFDIR)
            target = _inside(archive, folder, member.filename, plain)
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(member) as source, target.open("xb") as file:
                shutil.copyfileobj(source, file)


def _tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive, "r:*") as opened:
        for member in opened:
            target = _inside(archive, folder, member.name, member.isfile() or member.isdir())
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            source = opened.extractfile(member)
            assert source is not None  # it is a plain file
            with source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
                if file.tell() != member.size:
                    raise EOFError(f"{member.name} is cut short")
        # Cut off between two members, an archive looks whole but for the empty block that ends it.
        assert opened.fileobj is not None
        opened.fileobj.seek(opened.offset)
        if len(opened.fileobj.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
            raise EOFError("its end is missing")


def _gz(archive: Path, folder: Path) -> None:
    if archive.stat().st_size == 0:
        raise EOFError("empty file")
    with gzip.open(archive) as source, (folder / archive.name[: -len(".gz")]).open("wb") as file:
        shutil.copyfileobj(source, file)


def _inside(archive: Path, folder: Path, name: str, plain: bool) -> Path:
    """Return where a member goes, refusing whatever could end up elsewhere."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
        raise UserError(
            f"{archive}: member {name!r} points out of the folder; nothing was unpacked"
        )
    if not plain:
        raise UserError(f"{archive}: member {name!r} is a link or a device; nothing was unpacked")
    return folder / path


def _merge(source: Path, folder: Path) -> None:
    """Move files to their places, replacing what an earlier, interrupted unpacking left there."""
    for path in sorted(source.rglob("*")):
        target = folder / path.relative_to(source)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            os.replace(path, target)
