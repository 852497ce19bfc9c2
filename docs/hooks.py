"""What mkdocs does on the way: the navigation follows the pages that are there, links into the
repository are checked.

A page may link to a file of the repository, as forges show it (`../configs/data/cifar10.yaml`). The
site does not hold
those: such a link becomes the file's name. A missing file is a warning, which `mkdocs build
--strict` makes an error.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

log = logging.getLogger("mkdocs.hooks.repository")


def on_config(config: Any) -> Any:
    """Leave out pages that are not there, and put a folder's pages in the place of its name."""
    config.nav = _present(config.nav, Path(config.docs_dir))
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links out of the documentation into names of files."""
    docs = Path(config.docs_dir).resolve()
    here = (docs / page.file.src_uri).parent

    def named(found: re.Match[str]) -> str:
        target = (here / found["path"]).resolve()
        if target.is_relative_to(docs) or not target.is_relative_to(docs.parent):
            return found[0]
        if not target.exists():
            log.warning(
                "%s links to %s, which is not in the repository", page.file.src_uri, found["path"]
            )
        name = target.relative_to(docs.parent).as_posix()
        return found["text"] if name in found["text"] else f"{found['text']} (`{name}`)"

    return re.sub(
        r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<path>\.\.?/[^)#:]+)(#[^)]*)?\)", named, markdown
    )


def on_post_build(config: Any) -> None:
    """Warn of a public name that the reference does not describe: one without a docstring, or of no
    page.
    """
    site = Path(config.site_dir) / "reference"
    pages = "".join(page.read_text() for page in site.glob("*.html"))
    table = (Path(config.docs_dir) / "reference" / "index.md").read_text()
    for module, names in re.findall(r"^\| `(robust_ood\.[\w.]+)` \| (.+) \|$", table, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            # A function of its module's name hides it: `robust_ood.models.wrap` is described under
            # `wrap.wrap`.
            if not re.search(rf'id="{module}(\.{name})?\.{name}"', pages):
                log.warning("the reference does not describe %s.%s", module, name)


def _present(entries: list[Any], docs: Path) -> list[Any]:
    kept: list[Any] = []
    for entry in entries:
        title, place = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(place, list):
            inside: Any = _present(place, docs)
        elif (docs / place).is_dir():
            pages = sorted(
                (docs / place).rglob("*.md"), key=lambda path: (path.name != "index.md", path)
            )
            inside = [path.relative_to(docs).as_posix() for path in pages]
        else:
            inside = place if (docs / place).is_file() else []
        if inside and title is not None:
            kept.append({title: inside})
        elif inside:
            kept += inside if isinstance(inside, list) else [inside]
    return kept
