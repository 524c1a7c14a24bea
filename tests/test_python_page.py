"""docs/python.md runs as it is, from its first block to its last."""

import os
import shlex
import subprocess
from pathlib import Path

import airstreams
from airstreams.runs import saved_model as saved_models
from tests.pages import blocks, page
from tests.python import python_words

PAGE = page("python.md")


def test_the_code_of_the_page_runs(tmp_path):
    training, *others = blocks(PAGE, "python")
    assert "`train_mine.py`:\n\n```python" in PAGE
    (tmp_path / "train_mine.py").write_text(training)
    (tmp_path / "others.py").write_text("\n".join(others))
    commands = [f'python() {{ {shlex.join(python_words())} "$@"; }}', *blocks(PAGE, "sh")]
    done = subprocess.run(
        ["bash", "-euc", "\n".join([*commands, "python train_mine.py", "python others.py"])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(airstreams.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert saved_models.load(tmp_path / "runs/mine").config.model.streams == ["rgb", "flow"]
    assert (tmp_path / "runs/mine/evaluation/test/figures.json").is_file()
    assert "{'width': " in done.stdout
