"""The README works where only its text is shown, such as on a package index."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_has_no_relative_links():
    assert re.findall(r"(?<!!)\[[^\]]*\]\((?!https?://)[^)]*\)", README) == []


def test_the_readmes_pictures_have_a_text_in_their_place():
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", README)
    assert pictures
    for text, path in pictures:
        assert len(text.split()) > 5
        assert (ROOT / path).is_file()


def test_the_readme_names_pages_that_exist():
    pages = re.findall(r"`(docs/[\w./-]*)`", README)
    assert len(pages) > 10
    assert [page for page in pages if not (ROOT / page).exists()] == []
