"""Trainings that are killed or signalled, and resumed: the result is the same, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import airstreams
from airstreams.cli import main
from airstreams.data.sources import open_source
from airstreams.errors import InputError, Stopped
from airstreams.recipe import load_config, save_config
from airstreams.runs.checkpoint import TrainingState, load_state, save_state, saved_states
from airstreams.training import setup
from airstreams.training.loop import train
from airstreams.training.signals import STOP, Signals, asked_to_stop
from airstreams.training.start import Start
from tests.processes import Call
from tests.training.runs import EVERY_LAYER, entries

QUIET = Console(quiet=True)
KILLS = 10

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")


@pytest.fixture(scope="module")
def config(tiny):
    """Everything that a state must hold: dropout, decoding processes, validation videos, gains. It is saved often."""
    return replace(
        tiny,
        data=replace(tiny.data, workers=1),
        model=replace(
            tiny.model,
            streams=["rgb", "semantic"],
            dropout=0.5,
            width=0.125,
            tower=EVERY_LAYER,
            merge="gain",
            answer="mean",
        ),
        training=replace(tiny.training, epochs=6, batch_size=2, save_every=3),
    )


@pytest.fixture(scope="module")
def videos(synthetic, tmp_path_factory):
    """The training videos; one of each class is for validation."""
    root = tmp_path_factory.mktemp("validated")
    shutil.copytree(synthetic / "videos" / "train", root / "videos" / "train")
    shutil.copytree(synthetic / "labels" / "train", root / "labels" / "train")
    shutil.copy(synthetic / "labels" / "labels.json", root / "labels")
    for folder in (root / "videos" / "train").iterdir():
        (root / "videos" / "val" / folder.name).mkdir(parents=True)
        (folder / "000.mp4").rename(root / "videos" / "val" / folder.name / "000.mp4")
    return root


@pytest.fixture(scope="module")
def undisturbed(videos, config, tmp_path_factory):
    """The run that nobody killed."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    start(videos, run, config).finish()
    return run


def train_arguments(videos, run, config):
    """The arguments of `airstreams train`: from the beginning, or, if the run has begun, with --resume."""
    arguments = ["train", str(videos / "videos"), "--out", str(run), "--labels", str(videos / "labels")]
    if (run / "config.yaml").exists():
        return [*arguments, "--resume"]
    recipe = run.parent / f"{run.name}.yaml"
    save_config(config, recipe)
    return [*arguments, "--config", str(recipe)]


def start(videos, run, config, new_group=False):
    """Start a training in a process of its own."""
    words = train_arguments(videos, run, config)
    return Call(main, words, output=run.parent / f"{run.name}.txt", new_group=new_group)


def start_python(videos, run, config):
    """Start `python -m airstreams train`, as people do."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(airstreams.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-m", "airstreams", *train_arguments(videos, run, config)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def comparable(entry):
    """An entry without the times."""
    metrics = entry.get("train", entry)
    return {name: value for name, value in metrics.items() if name not in ("clips_per_second", "waiting", "seconds")}


def assert_same_end(run, undisturbed):
    expected, found = (load_file(folder / "model.safetensors") for folder in (undisturbed, run))
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    (whole, _), (resumed, _) = load_state(undisturbed), load_state(run)
    assert (resumed.epoch, resumed.step, resumed.best) == (whole.epoch, whole.step, whole.best)
    assert_equal(resumed.learner, whole.learner)
    assert [comparable(e) for e in entries(run)] == [comparable(e) for e in entries(undisturbed)]


def assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    else:
        assert one == other


def test_a_training_killed_ten_times_ends_with_the_same_bits(videos, config, undisturbed, tmp_path):
    """The first kill falls at the start. Each later one falls at a random time after the next saved state."""
    run = tmp_path / "killed"
    drawn = random.Random(int.from_bytes(os.urandom(2)))
    kills, steps_at_kill = 0, []
    while kills < KILLS:
        process = start(videos, run, config)
        newest = saved_states(run)[:1]
        deadline = time.monotonic() + 60
        patience = drawn.uniform(0, 0.03)
        while kills and process.poll() is None and saved_states(run)[:1] == newest and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(patience)
        process.kill()
        if process.wait() != -signal.SIGKILL:
            break
        kills += 1
        if (run / "config.yaml").exists():
            steps_at_kill.append(load_state(run)[0].step)
        elif run.exists() and any(run.iterdir()):
            assert not (run / "model.safetensors").exists()
    assert kills == KILLS, f"it ended after {kills} kills; states at the kills: {steps_at_kill}"
    assert len({step for step in steps_at_kill if step % 10}) >= 3, steps_at_kill  # in the middle of epochs
    start(videos, run, config).finish()
    assert_same_end(run, undisturbed)


def test_the_number_of_decoding_processes_changes_nothing(videos, config, undisturbed, tmp_path):
    start(videos, tmp_path / "run", replace(config, data=replace(config.data, workers=0))).finish()
    assert_same_end(tmp_path / "run", undisturbed)


def test_a_run_resumed_elsewhere_keeps_the_description_of_its_model(videos, config, tmp_path):
    """A kill between the two files of a model then leaves a pair that belongs together."""
    source = open_source(str(videos / "videos"), videos / "labels")
    config = replace(config, training=replace(config.training, epochs=2))
    stopped: list[dict] = []

    def description():
        """All but the kept epoch, which has a checksum of its own."""
        return {
            key: value
            for key, value in json.loads((tmp_path / "run" / "model.json").read_text()).items()
            if key != "kept"
        }

    def stop(record):
        stopped.append(description())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(source, config, tmp_path / "run", False, QUIET, after_epoch=stop)
    elsewhere = replace(config, data=replace(config.data, workers=0, cache=str(tmp_path / "cache")))
    train(source, elsewhere, tmp_path / "run", True, QUIET)
    assert [description()] == stopped


@pytest.mark.parametrize("number", STOP)
def test_each_stop_signal_asks_to_save_and_stop(number):
    with Signals() as signals:
        signals.has_steps = True
        os.kill(os.getpid(), number)
        assert (signals.save, signals.stop) == (True, True)
    assert asked_to_stop.is_set()


def test_ctrl_c_saves_the_state_and_says_how_to_resume(videos, config, undisturbed, tmp_path):
    config = replace(config, training=replace(config.training, save_every=10_000))
    run = tmp_path / "run"
    process = start_python(videos, run, config)
    while process.poll() is None and not entries(run):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "airstreams: stopped at step" in stderr
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    assert load_state(run)[0].step >= entries(run)[-1]["step"] >= 10
    start(videos, run, config).finish()
    assert_same_end(run, undisturbed)


def test_a_signal_to_the_whole_group_during_validation_stops_after_saving(videos, config, undisturbed, tmp_path):
    """Schedulers, torchrun and terminals signal the decoding processes too."""
    config = replace(config, training=replace(config.training, save_every=10_000))
    run = tmp_path / "run"
    process = start(videos, run, config, new_group=True)
    while process.poll() is None and not (entries(run) and entries(run)[-1]["step"] >= 10):
        time.sleep(0.002)  # step 10 ends the first epoch, and its validation is next
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == 1
    assert "airstreams: stopped at step" in process.output.read_text()
    start(videos, run, config).finish()
    assert_same_end(run, undisturbed)


def test_a_signal_before_the_first_step_stops_at_once(videos, config, trained, tmp_path):
    class Stops(Console):
        def print(self, *objects, **options):  # the report on --init, before any video is opened
            os.kill(os.getpid(), signal.SIGTERM)

    source = open_source(str(videos / "videos"), videos / "labels")
    with pytest.raises(KeyboardInterrupt):
        train(source, config, tmp_path / "run", False, Stops(quiet=True), Start("run", trained))
    assert not (tmp_path / "run").exists()


def test_a_second_ctrl_c_stops_at_once(videos, config, tmp_path):
    class Stops(Console):
        def print(self, *objects, **options):
            if objects and str(objects[0]).startswith("epoch 1/"):
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(
            open_source(str(videos / "videos"), videos / "labels"), config, tmp_path / "run", False, Stops(quiet=True)
        )


def test_a_stop_signal_during_a_save_is_heard(videos, config, tmp_path, monkeypatch):
    config = replace(config, training=replace(config.training, save_every=4))

    def save(state, run, keep):
        save_state(state, run, keep)
        if state.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(setup, "save_state", save)
    with pytest.raises(Stopped, match="stopped at step 5,"):
        train(open_source(str(videos / "videos"), videos / "labels"), config, tmp_path / "run", False, QUIET)
    assert load_state(tmp_path / "run")[0].step == 5


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk_keeps_the_previous_state_and_names_the_file(tmp_path):
    import resource

    save_state(a_state(3), tmp_path, keep=2)
    large = TrainingState(0, 4, 4, None, {}, {"model": {"weight": torch.zeros(100_000)}})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large.*step-000000004\.pt"):
            save_state(large, tmp_path, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-000000003.pt"]


def test_sigusr1_saves_the_state_and_training_continues(videos, config, undisturbed, tmp_path):
    config = replace(config, training=replace(config.training, save_every=10_000, keep=100))
    process = start(videos, tmp_path / "run", config)
    sent, steps = 0, set()
    while process.poll() is None:
        if len(entries(tmp_path / "run")) > sent * 2 and sent < 3:
            process.send_signal(signal.SIGUSR1)
            sent += 1
        steps |= {load_state_step(path) for path in saved_states(tmp_path / "run")}
        time.sleep(0.01)
    process.finish()
    assert [step for step in steps if step % 10], steps  # epochs end every ten steps
    assert_same_end(tmp_path / "run", undisturbed)


def test_a_finished_run_keeps_its_last_state_alone(undisturbed):
    assert [load_state_step(path) for path in saved_states(undisturbed)] == [60]  # states were saved every three steps


def test_a_run_that_is_to_keep_no_state_loses_it_only_when_it_is_complete(videos, config, tmp_path, monkeypatch):
    config = replace(config, training=replace(config.training, epochs=1, keep=0))
    source, run = open_source(str(videos / "videos"), videos / "labels"), tmp_path / "run"

    def killed(run):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(setup, "remove_states", killed)
        with pytest.raises(KeyboardInterrupt):
            train(source, config, run, False, QUIET)
    weights = load_file(run / "model.safetensors")
    assert [load_state_step(path) for path in saved_states(run)] == [9]
    record = train(source, config, run, True, QUIET)
    assert not (run / "state").exists()
    assert all(torch.equal(weights[name], tensor) for name, tensor in load_file(run / "model.safetensors").items())
    assert train(source, config, run, True, QUIET) == record  # it is done, and says so
    longer = replace(config, training=replace(config.training, epochs=2))
    with pytest.raises(InputError, match=r"state.*--init"):
        train(source, longer, run, True, QUIET)


def load_state_step(path):
    return int(path.stem.removeprefix("step-"))


def a_state(step):
    return TrainingState(0, step, step, None, {}, {"model": {"weight": torch.full((5,), float(step))}})


def test_only_the_newest_states_are_kept_and_unfinished_ones_are_removed(tmp_path):
    left = [tmp_path / "state" / ".123.step-000000001.pt", tmp_path / ".123.model.safetensors"]
    for step in range(5):
        save_state(a_state(step), tmp_path, keep=2)
        for path in left:
            path.write_bytes(b"half")
    save_state(a_state(5), tmp_path, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["step-000000004.pt", "step-000000005.pt"]
    assert load_state(tmp_path)[0].step == 5
    # A damaged state of a later step does not count among those kept.
    (tmp_path / "state" / "step-000000009.pt").write_bytes(b"damaged")
    save_state(a_state(7), tmp_path, keep=2)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["step-000000005.pt", "step-000000007.pt"]


def test_foreign_files_beside_the_states_stay(tmp_path):
    others = [tmp_path / "state" / "@eaDir", tmp_path / "state" / "mine.pt"]
    others[0].mkdir(parents=True)
    others[1].write_bytes(b"a copy")
    for step in range(3):
        save_state(a_state(step), tmp_path, keep=1)
    assert sorted((tmp_path / "state").iterdir()) == [*others, tmp_path / "state" / "step-000000002.pt"]


def test_a_state_with_damage_that_pickle_reports_is_skipped(tmp_path):
    for step in (3, 7):
        save_state(a_state(step), tmp_path, keep=2)
    newest = tmp_path / "state" / "step-000000007.pt"
    with zipfile.ZipFile(newest) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(newest, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data.replace(b"epoch_step", b"epoch\xff\xfetep"))
    with pytest.raises(UnicodeDecodeError):
        torch.load(newest, weights_only=True)
    state, damaged = load_state(tmp_path)
    assert (state.step, damaged) == (3, [newest])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_state_is_skipped_for_the_one_before(tmp_path, share):
    for step in (3, 7):
        save_state(a_state(step), tmp_path, keep=2)
    newest = tmp_path / "state" / "step-000000007.pt"
    newest.write_bytes(newest.read_bytes()[: int(newest.stat().st_size * share)])
    state, damaged = load_state(tmp_path)
    assert (state.step, damaged) == (3, [newest])
    (tmp_path / "state" / "step-000000003.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"step-000000007\.pt"):
        load_state(tmp_path)


def test_a_state_that_would_run_code_is_skipped(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it ran"),)

    save_state(a_state(3), tmp_path, keep=2)
    save_state(replace(a_state(7), learner={"model": Bomb()}), tmp_path, keep=2)
    state, damaged = load_state(tmp_path)
    assert (state.step, [path.name for path in damaged]) == (3, ["step-000000007.pt"])
    assert not (tmp_path / "it ran").exists()


def test_resuming_without_a_state_is_rejected(synthetic, tiny, tmp_path):
    with pytest.raises(InputError, match=r"absent.*state.*--out"):
        train(open_source(str(synthetic / "videos"), synthetic / "labels"), tiny, tmp_path / "absent", True, QUIET)


def test_a_video_lost_before_resuming_is_counted_and_the_order_stays(synthetic, tiny, tmp_path):
    """A resumed run keeps the list of videos that it began with."""
    videos = shutil.copytree(synthetic / "videos", tmp_path / "videos")
    config = replace(tiny, model=replace(tiny.model, streams=["rgb"]))
    run = tmp_path / "run"

    class Stops(Console):
        def print(self, *objects, **options):
            if objects and str(objects[0]).startswith("epoch 1/"):
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RuntimeError, match="stopped"):
        train(open_source(str(videos)), config, run, False, Stops(quiet=True))
    (videos / "train" / "disc_up" / "002.mp4").write_bytes(b"")
    train(open_source(str(videos)), load_config(run / "config.yaml"), run, True, QUIET)
    last = [entry for entry in entries(run) if "train" in entry][-1]
    assert (last["epoch"], last["train"]["clips"]) == (2, 23)
    assert "disc_up/002.mp4" in last["train"]["left_out"][0]
