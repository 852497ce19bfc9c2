"""Hooks of mkdocs: complete the navigation, and check links into the repository.

A page may link to a file of the repository, as forges show it (`../configs/data/cifar10.yaml`). The
site does not hold such files, so the link becomes the file's name. A missing file is a warning,
which `mkdocs build --strict` makes an error.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

log = logging.getLogger("mkdocs.hooks.repository")


def on_config(config: Any) -> Any:
    """Leave missing pages out of the navigation, and replace a folder by its pages."""
    config.nav = _present(config.nav, Path(config.docs_dir))
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links to files outside the documentation into the files' names."""
    docs = Path(config.docs_dir).resolve()
    folder = (docs / page.file.src_uri).parent

    def without_link(link: re.Match[str]) -> str:
        target = (folder / link["path"]).resolve()
        if target.is_relative_to(docs) or not target.is_relative_to(docs.parent):
            return link[0]
        if not target.exists():
            log.warning(
                "%s links to %s, which is not in the repository", page.file.src_uri, link["path"]
            )
        name = target.relative_to(docs.parent).as_posix()
        if name in link["text"]:
            return link["text"]
        return f"{link['text']} (`{name}`)"

    return re.sub(
        r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<path>\.\.?/[^)#:]+)(#[^)]*)?\)", without_link, markdown
    )


def on_post_build(config: Any) -> None:
    """Warn if the reference lacks a public name: it has no docstring, or no page."""
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
    """Return the entries whose pages exist, with folders replaced by their pages."""
    kept: list[Any] = []
    for entry in entries:
        title = None
        target = entry
        if isinstance(entry, dict):
            title, target = next(iter(entry.items()))
        pages = _pages(target, docs)
        if pages and title is not None:
            kept.append({title: pages})
        elif isinstance(pages, list):
            kept += pages
        else:
            kept.append(pages)
    return kept


def _pages(target: Any, docs: Path) -> Any:
    """Return the page of a file's name, or the list of pages of a folder's name or of entries."""
    if isinstance(target, list):
        return _present(target, docs)
    if (docs / target).is_dir():
        paths = sorted((docs / target).rglob("*.md"), key=_index_first)
        return [path.relative_to(docs).as_posix() for path in paths]
    if (docs / target).is_file():
        return target
    return []


def _index_first(path: Path) -> tuple[bool, Path]:
    return path.name != "index.md", path
