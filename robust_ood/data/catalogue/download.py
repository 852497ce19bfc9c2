"""Downloads that continue where they stopped and are checked.

The library pooch was considered instead of our own code. It deletes a partial download instead of
continuing it, knows one URL a file, and takes a host's web page for the file; and it would add
requests and platformdirs to what everybody installs.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from robust_ood.errors import UserError

ReportBytes = Callable[[int, int | None], None]
"""Called with the number of bytes so far, and the number expected if the host announces it."""

_BLOCK = 2**20  # bytes read at a time
_TIMEOUT = 30  # seconds without a byte
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
"""What the system says of a place to write to, and not of a host."""
_FAILURES = (OSError, http.client.HTTPException, ValueError)  # URLError and timeouts are OSErrors


def fetch(
    urls: Sequence[str],
    path: Path,
    md5: str | None,
    manual: str,
    report: ReportBytes = lambda received, total: None,
) -> Path:
    """Download a file, unless it exists already, and check it.

    What has been received is kept in `PATH.part`; a later call continues from there if the host
    allows it.

    Args:
        urls: where the file is, tried in order.
        path: where to store it.
        md5: its checksum; None checks only the length that the host announces.
        manual: what to do by hand, for the message where every host refuses.
        report: called after each received block.

    Raises:
        UserError: no host gives the file, the connection ends early, or the checksum differs.
    """
    if path.is_file():
        _check(path, path, md5)
        return path
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    refusals: list[str] = []
    for url in urls:
        try:
            _receive(url, part, report)
        except _FAILURES as error:
            if isinstance(error, OSError) and error.errno in _DISK:
                raise UserError(
                    f"cannot write {part} ({error.strerror}); what has been received is kept, the "
                    "same command continues from there"
                ) from error
            refusals.append(f"{url}: {_reason(error)}")
            continue
        _check(part, path, md5)
        os.replace(part, path)
        return path
    kept = ""
    if part.is_file():
        kept = f"; {part.stat().st_size} bytes are kept, the same command continues from there"
    raise UserError(f"cannot download {path.name} ({'; '.join(refusals)}){kept}; by hand: {manual}")


def checksum(path: Path) -> str:
    """Return a file's MD5 sum, which most authors of data sets publish.

    It finds damage, not forgery.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _receive(url: str, part: Path, report: ReportBytes) -> None:
    """Receive the rest of a file into `part`."""
    start = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "robust-ood", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            _write_answer(answer, part, start, report)
    except urllib.error.HTTPError as error:
        # "Range not satisfiable": the part is the whole file already.
        if error.code != 416 or not start:
            raise


def _write_answer(
    answer: http.client.HTTPResponse, part: Path, start: int, report: ReportBytes
) -> None:
    """Append what a host sends from byte `start` on, or write all of it where it starts over."""
    if "text/html" in answer.headers.get("Content-Type", ""):
        raise ValueError("the host answers with a web page instead of the file")
    received = start if answer.status == 206 else 0
    length = answer.headers.get("Content-Length")
    total = received + int(length) if length else None
    with part.open("ab" if received else "wb") as file:
        while block := answer.read(_BLOCK):
            file.write(block)
            received += len(block)
            report(received, total)
    if total is not None and received < total:
        raise ValueError(f"the connection ended after {received} of {total} bytes")


def _check(file: Path, final: Path, md5: str | None) -> None:
    """Remove a file whose checksum differs, and raise `UserError`."""
    if md5 is None:
        return
    actual = checksum(file)
    if actual != md5:
        file.unlink()
        raise UserError(
            f"{final}: its MD5 sum is {actual}, not {md5}; the file was removed, download it again"
        )


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split()) or type(error).__name__
