"""The pages of docs/, whose code the tests run."""

import re
from pathlib import Path


def page(name):
    """The text of a page."""
    return (Path(__file__).parents[1] / "docs" / name).read_text(encoding="utf-8")


def blocks(text, language):
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
