"""Downloads that go on where they stopped, and are what they should be."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from robust_ood.errors import UserError

Progress = Callable[[int, int | None], None]
"""Told how many bytes there are so far, and of how many where the host says so."""

_CHUNK = 2**20
_TIMEOUT = 30  # seconds without a byte
_FAILURES = (OSError, http.client.HTTPException, ValueError)  # URLError and timeouts are OSErrors


def fetch(
    urls: Sequence[str],
    path: Path,
    md5: str | None,
    manual: str,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Download a file, unless it is there already, and check it.

    What has been received is kept in `PATH.part`; a later call goes on from there where the host
    can.

    Args:
        urls: where the file is, tried in order.
        path: where it goes.
        md5: its checksum; None checks the length that the host announces alone.
        manual: what to do by hand, for the message where every host refuses.
        progress: told of each piece.

    Raises:
        UserError: no host gives the file, the connection ends early, or the checksum is another.
    """
    if path.is_file():
        _check(path, path, md5)
        return path
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    refusals = []
    for url in urls:
        try:
            _receive(url, part, progress)
        except _FAILURES as error:
            refusals.append(f"{url}: {_reason(error)}")
            continue
        _check(part, path, md5)
        os.replace(part, path)
        return path
    kept = (
        f"; {part.stat().st_size} bytes are kept, the same command goes on from there"
        if part.is_file()
        else ""
    )
    raise UserError(f"cannot download {path.name} ({'; '.join(refusals)}){kept}; by hand: {manual}")


def checksum(path: Path) -> str:
    """Return a file's MD5 sum, the kind that the data sets' authors publish; it finds damage, not
    forgery.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _receive(url: str, part: Path, progress: Progress) -> None:
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": "robust-ood", "Accept-Encoding": "identity"}
    )
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            if "text/html" in answer.headers.get("Content-Type", ""):
                raise ValueError("the host answers with a web page instead of the file")
            if answer.status != 206:  # the host starts over
                start = 0
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length else None
            done = start
            with part.open("ab" if start else "wb") as file:
                while piece := answer.read(_CHUNK):
                    file.write(piece)
                    done += len(piece)
                    progress(done, total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left to send: all of it is there
            return
        raise
    if total is not None and done < total:
        raise ValueError(f"the connection ended after {done} of {total} bytes")


def _check(file: Path, final: Path, md5: str | None) -> None:
    """Remove a file that is not what it should be, and say so."""
    if md5 is None:
        return
    found = checksum(file)
    if found != md5:
        file.unlink()
        raise UserError(
            f"{final}: its MD5 sum is {found}, not {md5}; the file was removed, download it again"
        )


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split()) or type(error).__name__
