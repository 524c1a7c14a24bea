"""Links from a page to a file outside docs/, such as `../src/airstreams/recipe.py`, work on the site as in a checkout.

Each such file becomes a page of the site under files/, with its text as a block of code. A file that does not exist is
a broken link, which ends a strict build.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(((?:\.\./)+[\w./-]+)\)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".md": "markdown"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every linked file."""
    for page in list(files.documentation_pages()):
        for link in LINK.findall(page.content_string):
            path = _outside(page, link)
            if path and path.is_file() and files.get_file_from_path(_uri(path)) is None:
                name = path.relative_to(ROOT).as_posix()
                fence = "`" * 6
                language = LANGUAGES.get(path.suffix, "text")
                text = path.read_text(encoding="utf-8")
                content = f"---\nsearch: {{exclude: true}}\n---\n# {name}\n\n{fence}{language}\n{text}\n{fence}\n"
                generated = File.generated(config, _uri(path), content=content)
                generated.inclusion = InclusionLevel.NOT_IN_NAV
                files.append(generated)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Lead the links to those pages."""

    def lead(link: re.Match[str]) -> str:
        path = _outside(page.file, link[1])
        if path is None or not path.is_file():
            return link[0]
        return f"]({'../' * page.file.src_uri.count('/')}{_uri(path)})"

    return LINK.sub(lead, markdown)


def _outside(page: File, link: str) -> Path | None:
    """The file that a page's link names, or None if it lies in docs/."""
    path = (ROOT / "docs" / page.src_uri).parent.joinpath(link).resolve()
    return None if path.is_relative_to(ROOT / "docs") else path


def _uri(path: Path) -> str:
    return f"files/{path.relative_to(ROOT).as_posix()}.md"
