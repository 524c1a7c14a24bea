"""The pages of docs/, whose code is run as it stands."""

import re
from pathlib import Path


def page(name):
    """A page's text."""
    return (Path(__file__).parents[1] / "docs" / name).read_text(encoding="utf-8")


def blocks(text, language):
    """A page's code in this language, block by block."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
