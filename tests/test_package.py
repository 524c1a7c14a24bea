"""The wheel, installed into an environment with the few packages that the command line needs before any work begins.

torch would be gigabytes to install for each run of the tests. So `--version`, `--help` and the recipes are tested
without it, which also shows that help needs no torch.
"""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import airstreams
from airstreams.commands import COMMANDS

ROOT = Path(__file__).parents[1]
NEEDED_FOR_HELP = ("jsonargparse[signatures]", "rich")
RECIPES = {"demo", "jhmdb", "jhmdb-small", "hmdb51", "moments", "charades", "smarthome"}


def run(*command, **options):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, so that nothing of the build stays in the working tree."""
    copy = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    isolation = ["--no-isolation"] if importlib.util.find_spec("setuptools") else []
    built = run(sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", copy / "dist", copy)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (copy / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory):
    """Runs the installed `airstreams` outside the working tree."""
    folder = tmp_path_factory.mktemp("empty")
    made = run(sys.executable, "-m", "venv", "--without-pip", folder / "env")
    assert made.returncode == 0, made.stderr
    programs = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    pip = (sys.executable, "-m", "pip", "--python", programs / "python", "install", "--quiet")
    for what in (("--no-deps", wheel), ("--constraint", ROOT / "constraints.txt", *NEEDED_FOR_HELP)):
        installed = run(*pip, *what)
        if "connection" in installed.stderr.lower():
            pytest.skip("no package index can be reached, so the wheel cannot be installed into an empty environment")
        assert installed.returncode == 0, installed.stderr
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return lambda *words: run(programs / "airstreams", *words, cwd=folder, env=environment)


def test_the_wheel_has_the_package_its_recipes_and_its_licence_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"airstreams", f"airstreams-{airstreams.__version__}.dist-info"}
    assert "airstreams/viewing/run_report.html" in names
    assert {Path(name).stem for name in names if name.startswith("airstreams/recipes/") and name.endswith(".yaml")} >= (
        RECIPES
    )
    assert "airstreams/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in names)
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "airstreams").rglob("*.py")}
    assert sources | {"airstreams/models/tvl1_cpu.c"} <= set(names)


def test_the_wheel_declares_every_imported_package(wheel):
    """The imports are read from the sources, so a new import without a dependency is noticed."""
    imported = set()
    for path in (ROOT / "src" / "airstreams").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"airstreams"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["dependencies"]
    extras = [name for extra, names in project["optional-dependencies"].items() if extra != "dev" for name in names]
    provided = {name.split(">")[0].split("[")[0].lower() for name in [*declared, *extras]}
    provided |= {"yaml"} if "jsonargparse" in provided else set()  # its own dependency, PyYAML
    provided |= {"PIL"} if "pillow" in provided else set()
    provided |= {"sklearn"} if "scikit-learn" in provided else set()
    assert foreign <= provided
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    assert all(f"Requires-Dist: {name.split('[')[0]}" in text for name in declared if "[" not in name)


def test_the_installed_command_prints_its_version_and_its_help(command):
    version = command("--version")
    assert version.returncode == 0, version.stderr
    assert version.stdout.split()[-1] == airstreams.__version__
    shown = command("--help")
    assert shown.returncode == 0, shown.stderr
    for verb in COMMANDS:
        assert verb in shown.stdout
    of_train = command("train", "--help")
    assert of_train.returncode == 0, of_train.stderr
    assert "--training.epochs" in of_train.stdout
    assert "Example:" in of_train.stdout


def test_the_installed_command_finds_its_recipes_by_name(command):
    shown = command("train", "videos", "--out", "run", "--config", "demo", "--print_config")
    assert shown.returncode == 0, shown.stderr
    assert "frames: 8" in shown.stdout  # the demo's; the default is 16
    unknown = command("train", "videos", "--out", "run", "--config", "nosuch")
    assert unknown.returncode == 2
    assert len(unknown.stderr.splitlines()) == 1
    for name in RECIPES:
        assert name in unknown.stderr
