"""examples/first_steps.ipynb runs as it stands, cell by cell."""

import json
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot as plt

NOTEBOOK = json.loads((Path(__file__).parents[2] / "examples/first_steps.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def drawn_without_a_window():
    before = matplotlib.get_backend()
    matplotlib.use("Agg")
    yield
    plt.close("all")
    matplotlib.use(before)


def test_the_notebook_trains_evaluates_predicts_and_shows_a_picture(
    tmp_path, monkeypatch, capsys, drawn_without_a_window
):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for number, cell in enumerate(CELLS, start=1):
        exec(compile("".join(cell["source"]), f"cell {number} of first_steps.ipynb", "exec"), names)
    assert (tmp_path / "first_steps/run/model.safetensors").is_file()
    assert 0 <= names["evaluation"].metrics.top1 <= 1
    assert sum(names["prediction"].probabilities.values()) == pytest.approx(1)
    assert names["axes"].images
    assert "top-1" in capsys.readouterr().out


def test_the_notebook_stores_no_outputs():
    assert not any(cell["outputs"] or cell["execution_count"] for cell in CELLS)
