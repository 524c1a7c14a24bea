"""The README works where only its text is shown, such as on a package index, and documented commands are accepted."""

import re
import shlex
from pathlib import Path

import pytest

from airstreams.commands.parser import for_parser, make_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_has_no_relative_links():
    assert re.findall(r"(?<!!)\[[^\]]*\]\((?!https?://)[^)]*\)", README) == []


def test_the_readmes_pictures_have_alternative_text():
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", README)
    assert pictures
    for text, path in pictures:
        assert len(text.split()) > 5
        assert (ROOT / path).is_file()


def test_the_readme_names_pages_that_exist():
    pages = re.findall(r"`(docs/[\w./-]*)`", README)
    assert len(pages) > 10
    assert [page for page in pages if not (ROOT / page).exists()] == []


def documented_commands(page):
    """The calls of airstreams in a page's blocks of code, each as its words; shortened ones (`...`) are left out."""
    for block in re.findall(r"^```(?:sh)?\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            call = re.match(r"(?:torchrun .* -m )?airstreams (?!.*\.\.\.)(.*)", line)
            if call:
                yield shlex.split(call[1], comments=True)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.stem
)
def test_documented_commands_are_accepted(page):
    for words in documented_commands(page):
        if "--config" in words and words[words.index("--config") + 1].endswith(".yaml"):  # the reader's own file
            index = words.index("--config")
            del words[index : index + 2]
        make_parser(words).parse_args(for_parser(words))
