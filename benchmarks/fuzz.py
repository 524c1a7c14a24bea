"""Damaged and hostile inputs: none may end in a traceback, a hang or a wrong frame. Figures: docs/reliability.md.

    python benchmarks/fuzz.py --seconds 300 --seed 0

Six kinds of input are changed at random: videos, CSV files, label stores, model files, recipes and command lines. Each
case has a number, and `--only KIND --first NUMBER --cases 1` repeats it. An input may be accepted, or refused by an
`InputError` or a `VideoError`. Anything else is a finding, and so is a case that takes over 20 s. Frames of a cut video
are compared with those of the whole one. Flipped bits may change pictures without a trace, so those are not compared.
"""

import argparse
import contextlib
import faulthandler
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from airstreams.cli import main
from airstreams.config import ClipConfig, Config, ModelConfig
from airstreams.data import label_maps
from airstreams.data.label_maps import LabelStore
from airstreams.data.sources import open_source
from airstreams.data.synthetic import render
from airstreams.data.video import check, probe, read_frames
from airstreams.errors import InputError, VideoError
from airstreams.models.airstreams import build
from airstreams.recipe import RECIPES, load_config
from airstreams.runs import saved_model as saved_models
from airstreams.runs.saved_model import SavedModel
from airstreams.towers import Block, Layer

SLOW = 20  # s that a case may take
ODD_TEXTS = (
    *("", "\0", "\x1b[2J", "\u202e", "=1+1", "-x", '"', "'", ";", ",", "\n", "../..", "%s", "{}", "nan", "1e999"),
    *(
        "-1",
        "9" * 40,
        "a" * 5000,
        "\ud800",
        "http://127.0.0.1:1/a",
        "~",
        "*",
        "null",
        "[",
        "{a: &b [*b]}",
        "!!python/x",
    ),
)
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    10**9,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    *ODD_TEXTS,
)

Random = np.random.Generator
Case = Callable[[Random, Path], None]


@dataclass(frozen=True)
class Finding:
    """A case that went wrong: its kind, its number, and what happened."""

    kind: str
    number: int
    what: str


class WrongFrameError(Exception):
    """A frame differs from that of the whole file."""


@dataclass(frozen=True)
class Originals:
    """Sound inputs that the cases change: `root` holds videos/, labels/, run/ and list.csv."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> "Originals":
        """Render a small data set, and write a small model."""
        render(root, ("disc", "square"), ("left", "up"), {"train": 1, "test": 1}, frames=8, size=64, seed=0)
        rows = [f"{path.relative_to(root)},{path.parent.name},train,0,1" for path in sorted(root.rglob("*.mp4"))]
        (root / "list.csv").write_text("\n".join(["path,label,split,start,end", *rows]) + "\n")
        tower = [Block(8, [Layer("conv2d", stride=2)]), Block(8, [Layer("conv2d")])]
        model = ModelConfig(streams=["rgb"], tower=tower, merge_levels=[1])
        network = build(model, 2, 1).eval()
        config = Config(clip=ClipConfig(frames=2, size=64), model=model)
        saved_models.save(SavedModel(config, ("a", "b"), ("background",), False, 25.0, model=network), root / "run")
        return cls(root)

    def videos(self, rng: Random, folder: Path) -> None:
        """A cut video, whose frames must be right, or one with changed bytes."""
        original = sorted((self.root / "videos").rglob("*.mp4"))[0]
        data, path = original.read_bytes(), folder / f"video.{rng.choice(['mp4', 'avi', 'mkv', 'ts', 'txt'])}"
        cut = rng.random() < 0.5
        path.write_bytes(data[: rng.integers(len(data))] if cut else changed(rng, data))
        for read in (check, probe):
            with contextlib.suppress(VideoError):
                read(path)
        with contextlib.suppress(VideoError):
            indices = range(min(probe(path).frames, 64))
            frames_NHW3 = read_frames(path, indices)
            if cut and not np.array_equal(frames_NHW3, read_frames(original, indices)):
                raise WrongFrameError(f"a file cut to {path.stat().st_size} bytes gives other frames")

    def csv_files(self, rng: Random, folder: Path) -> None:
        """A list of videos with changed bytes or cells."""
        path = folder / "list.csv"
        text = (self.root / "list.csv").read_text()
        if rng.random() < 0.5:
            rows = [line.split(",") for line in text.splitlines()]
            for _ in range(rng.integers(1, 4)):
                row = rows[rng.integers(len(rows))]
                row[rng.integers(len(row))] = ODD_TEXTS[rng.integers(len(ODD_TEXTS))]
            path.write_text("\n".join(map(",".join, rows)), errors="surrogatepass")
        else:
            path.write_bytes(changed(rng, text.encode()))
        open_source(f"{path}?root={self.root}")

    def label_stores(self, rng: Random, folder: Path) -> None:
        """Label maps with changed bytes, beside a changed labels.json."""
        key = next(LabelStore.open(self.root / "labels").keys())
        source, path = label_maps.file_of(self.root / "labels", key), folder / "video.npz"
        path.write_bytes(changed(rng, source.read_bytes()))
        about = json.loads((self.root / "labels" / "labels.json").read_text())
        if rng.random() < 0.5:
            about = odd(rng, about)
        (folder / "labels.json").write_text(json.dumps(about))
        store = LabelStore.open(folder)
        store.labelled_frames("video")
        store.read("video", [0, 1, 7])
        list(store.chunks("video"))

    def models(self, rng: Random, folder: Path) -> None:
        """A model.json with other values and the right checksums, or a changed file of weights."""
        weights, content = self.root / "run" / "model.safetensors", odd(rng, self._description())
        if rng.random() < 0.2:
            (folder / "model.safetensors").write_bytes(changed(rng, weights.read_bytes()))
        else:
            tensors = load_file(weights)
            described = content if isinstance(content, dict) else {}
            sums = {
                "sha256": saved_models._sum_of_weights(tensors),
                "description": saved_models._sum_of_description(described),
                "kept": saved_models._sum_of(described.get("kept")),
            }
            save_file(tensors, folder / "model.safetensors", {"sums": json.dumps(sums)})
        (folder / "model.json").write_text(saved_models._as_text(content))
        saved_models.load(folder)

    def recipes(self, rng: Random, folder: Path) -> None:
        """A packaged recipe with changed bytes, or any config with odd values."""
        path = folder / "recipe.yaml"
        if rng.random() < 0.5:
            names = sorted(RECIPES.glob("*.yaml"))
            path.write_bytes(changed(rng, names[rng.integers(len(names))].read_bytes()))
        else:
            path.write_text(json.dumps(odd(rng, self._description()["config"])))  # JSON is YAML
        load_config(path)

    def calls(self, rng: Random, folder: Path) -> None:
        """A call of random words. No word names data that exist, so no work begins."""
        verbs = (
            "check-data",
            "train",
            "evaluate",
            "predict",
            "info",
            "export",
            "report",
            "labels",
            "evolve",
            "tain",
            "",
        )
        options: tuple[str, ...] = (
            "--json",
            "--out",
            "--config",
            "--labels",
            "--split",
            "--top",
            "--root",
            "--window",
            "--training.lr",
        )
        options += ("--model.streams", "--resume", "--trust-module", "--data.workers=", "--seed", "--", "-h", "--debug")
        files = (str(folder / "none"), str(folder), "hmdb51:none", str(self.root / "list.csv") + "?root=none")
        words = [*options, *files, *ODD_TEXTS]
        argv = [verbs[rng.integers(len(verbs))], *(words[rng.integers(len(words))] for _ in range(rng.integers(5)))]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status: object = 0
            with contextlib.suppress(SystemExit):
                status = main([word.replace("\0", "") for word in argv])
        if status not in (0, 1, 2):
            raise AssertionError(f"{argv} gives the status {status}")

    def _description(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.root / "run" / "model.json").read_text())
        return content

    @property
    def kinds(self) -> dict[str, Case]:
        """The cases by their kind."""
        cases = (self.videos, self.csv_files, self.label_stores, self.models, self.recipes, self.calls)
        return {case.__name__: case for case in cases}


def changed(rng: Random, data: bytes) -> bytes:
    """Bytes with one to four changes: flipped, removed, repeated or odd ones."""
    changing = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(changing) + 1))
        to = min(len(changing), at + int(2 ** rng.uniform(0, 10)))
        odd_bytes = ODD_TEXTS[rng.integers(len(ODD_TEXTS))].encode(errors="surrogatepass")
        noise = rng.bytes(to - at)
        changing[at:to] = (noise, b"", changing[at:to] * 2, odd_bytes, b"\xff" * (to - at))[rng.integers(5)]
    return bytes(changing)


def odd(rng: Random, content: Any) -> Any:
    """JSON with an odd value in a random place."""
    value = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    if isinstance(content, dict) and content and rng.random() < 0.95:
        key = list(content)[rng.integers(len(content))]
        if rng.random() < 0.03:
            return {name: item for name, item in content.items() if name != key}
        return content | {key: odd(rng, content[key])}
    if isinstance(content, list) and content and rng.random() < 0.7:
        place = int(rng.integers(len(content)))
        return [*content[:place], odd(rng, content[place]), *content[place + 1 :]]
    return value


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """TimeoutError if the block takes longer. A hang inside C ends the program with a traceback, a little later."""

    def late(*_: object) -> None:
        raise TimeoutError(f"it took over {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(3 * seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_case(kind: str, case: Case, number: int, seed: int, folder: Path) -> Finding | None:
    """Run one case in an empty folder; returns what went wrong, if anything did."""
    folder.mkdir()
    try:
        with limited(SLOW):
            case(np.random.default_rng((seed, number)), folder)
    except (InputError, VideoError) as error:
        if "\n" in str(error) or len(str(error)) > 12_000:
            return Finding(kind, number, f"a message of several lines, or a long one: {str(error)[:200]!r}")
    except Exception:
        return Finding(kind, number, traceback.format_exc())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return None


def run(
    kinds: Sequence[str], seed: int, first: int, cases: int | None, seconds: float
) -> tuple[Counter[str], list[Finding]]:
    """Run cases of these kinds in turn, until all are done or the time is over; returns their counts and findings."""
    ends, done, findings = time.monotonic() + seconds, Counter[str](), list[Finding]()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_STATE_HOME"] = temporary  # where runs that were trained here are remembered
        torch.manual_seed(seed)
        originals = Originals.make(Path(temporary) / "originals")
        for number in count(first) if cases is None else range(first, first + cases):
            for kind in kinds:
                if time.monotonic() > ends:
                    return done, findings
                finding = run_case(kind, originals.kinds[kind], number, seed, Path(temporary) / "case")
                findings += [finding] if finding else []
                done[kind] += 1
    return done, findings


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of the call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = list(Originals(Path()).kinds)
    parser.add_argument("--only", choices=kinds, action="append", help="a kind of input; by default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--cases", type=int, help="how many cases of each kind; by default as many as fit")
    parser.add_argument("--seconds", type=float, default=300.0, help="when to stop")
    call = parser.parse_args(argv)
    call.only = call.only or kinds
    return call


if __name__ == "__main__":
    call = parsed()
    done, findings = run(call.only, call.seed, call.first, call.cases, call.seconds)
    for finding in findings:
        print(f"{finding.kind} {finding.number}: {finding.what}")
    print(", ".join(f"{number} {kind}" for kind, number in done.items()), f"{len(findings)} findings", sep=": ")
    sys.exit(bool(findings))
