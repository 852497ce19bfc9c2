"""Archives unpacked without letting them write anywhere else.

`tarfile`'s own "data" filter and pooch's processors would not do: the first lets links inside the
folder pass, is missing in early releases of Python 3.10 and 3.11, and there is none for zip files;
the second write straight into the folder, so that half of a damaged archive stays there.
"""

from __future__ import annotations

import errno
import gzip
import lzma
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
from robust_ood.texts import one_line

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# What the standard library raises on damaged archives.
_DAMAGE = (
    OSError,
    EOFError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,  # an encrypted zip file
)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a `.zip`, a `.tar` of any compression, or a single `.gz` into a folder.

    Only plain files and folders are unpacked. Nothing appears in the folder unless the whole
    archive is sound: members are first unpacked to a hidden folder inside it.

    Raises:
        UserError: the archive is damaged or of another format; it has a member whose path leads
            out of the folder, a link or a device (the message names the member); or the system
            refuses, as on a full disk (the message names the file and the folder).
    """
    unpack_into = _unpacker(archive)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as temporary:
            unpack_into(archive, Path(temporary))
            _merge(Path(temporary), folder)
    except UserError:
        raise
    except _DAMAGE as error:
        raise _described(error, archive, folder) from error


def _described(error: Exception, archive: Path, folder: Path) -> UserError:
    """Return what went wrong: the system's refusal, which has a number, or else damage."""
    reason = one_line(str(error)) or type(error).__name__
    # A damaged archive may ask for a place before its start.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return UserError(
            f"{archive}: cannot unpack it into {folder} ({error.strerror or reason}); the archive "
            "is kept"
        )
    return UserError(f"{archive}: damaged archive ({reason}); remove it and download it again")


def _unpacker(archive: Path) -> Callable[[Path, Path], None]:
    """Return the function that unpacks archives of this suffix into a folder."""
    name = archive.name.lower()
    if name.endswith(".zip"):
        return _unpack_zip
    if name.endswith(_TAR_SUFFIXES):
        return _unpack_tar
    if name.endswith(".gz"):
        return _unpack_gz
    accepted = ", ".join((".zip", *_TAR_SUFFIXES, ".gz"))
    raise UserError(f"{archive}: unknown archive format; accepted: {accepted}")


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            mode = stat.S_IFMT(member.external_attr >> 16)
            plain = mode in (0, stat.S_IFREG, stat.S_IFDIR)
            target = _target(archive, folder, member.filename, plain)
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(member) as source, target.open("xb") as file:
                shutil.copyfileobj(source, file)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive, "r:*") as opened:
        for member in opened:
            plain = member.isfile() or member.isdir()
            target = _target(archive, folder, member.name, plain)
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


def _unpack_gz(archive: Path, folder: Path) -> None:
    if archive.stat().st_size == 0:
        raise EOFError("empty file")
    target = folder / archive.name[: -len(".gz")]
    with gzip.open(archive) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file)


def _target(archive: Path, folder: Path, name: str, plain: bool) -> Path:
    """Return where a member is unpacked to; refuse whatever could end up elsewhere."""
    path = PurePosixPath(name.replace("\\", "/"))
    has_drive = bool(path.parts) and ":" in path.parts[0]
    if path.is_absolute() or ".." in path.parts or has_drive:
        raise UserError(
            f"{archive}: member {name!r} points out of the folder; nothing was unpacked"
        )
    if not plain:
        raise UserError(f"{archive}: member {name!r} is a link or a device; nothing was unpacked")
    return folder / path


def _merge(source: Path, folder: Path) -> None:
    """Move files to their final places, replacing those of an earlier, interrupted unpacking."""
    for path in sorted(source.rglob("*")):
        target = folder / path.relative_to(source)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            os.replace(path, target)
