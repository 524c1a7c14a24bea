"""Unlabelled videos: where they are listed, where they never appear, and their share of each batch."""

from dataclasses import replace

import pytest
import torch
from rich.console import Console

from airstreams.config import ClipConfig, Config, DataConfig, TrainingConfig
from airstreams.data.csv_list import write_csv
from airstreams.data.dataset import NO_CLASS, StepSampler, TrainingClips, has_label
from airstreams.data.grouping import with_groups
from airstreams.data.source_warnings import training_warnings
from airstreams.data.sources import open_source
from airstreams.data.splits import with_drawn_splits
from airstreams.errors import InputError
from airstreams.training.data import with_checked_splits
from airstreams.training.losses import action_loss

QUIET = Console(quiet=True)


def touched(folder, *names):
    """Empty files: sources never open a video."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def listed(folder, header, *rows):
    touched(folder, *(row.partition(",")[0] for row in rows))
    (folder / "list.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    return folder / "list.csv"


def names_of(videos):
    return [video.name for video in videos]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a/1.mp4", "b/2.mp4", "_unlabelled/3.mp4", "_unlabelled/film/4.mp4"], None),
        (["train/a/1.mp4", "train/b/2.mp4", "test/a/5.mp4", "train/_unlabelled/3.mp4"], "train"),
        (["train/a/1.mp4", "train/b/2.mp4", "test/a/5.mp4", "_unlabelled/3.mp4"], "train"),
    ],
    ids=["classes", "in train", "beside train"],
)
def test_a_folder_may_hold_unlabelled_videos(tmp_path, files, expected):
    source = open_source(str(touched(tmp_path, *files)))
    assert source.classes == ("a", "b")
    assert names_of(source.unlabelled) == sorted(name for name in files if "_unlabelled" in name)
    assert {video.split for video in source.unlabelled} == {"train"}
    assert all(video.labels == () for video in source.unlabelled)
    assert source.videos[-1].split == expected
    assert source.has_splits == (expected is not None)


@pytest.mark.parametrize("cell", ["", "_unlabelled"])
@pytest.mark.parametrize("split", ["", "train"])
def test_a_csv_row_without_a_label_is_unlabelled(tmp_path, cell, split):
    data = listed(
        tmp_path, "path,label,split", "a.mp4,x,train", "b.mp4,y,test", "d.mp4,y,train", f"c.mp4,{cell},{split}"
    )
    source = open_source(str(data))
    assert (names_of(source.videos), names_of(source.unlabelled)) == (["a.mp4", "b.mp4", "d.mp4"], ["c.mp4"])
    write_csv(tmp_path / "again.csv", source.videos, source.multi_label, source.unlabelled)
    assert open_source(str(tmp_path / "again.csv")).all_videos == source.all_videos


def test_an_empty_cell_of_a_multi_label_list_is_a_video_of_no_class(tmp_path):
    data = listed(tmp_path, "path,label", "a.mp4,x;y", "b.mp4,", "c.mp4,_unlabelled")
    source = open_source(str(data))
    assert (names_of(source.videos), names_of(source.unlabelled)) == (["a.mp4", "b.mp4"], ["c.mp4"])
    write_csv(tmp_path / "again.csv", source.videos, source.multi_label, source.unlabelled)
    assert open_source(str(tmp_path / "again.csv")).all_videos == source.all_videos


def test_unlabelled_videos_in_test_or_alone_are_refused(tmp_path):
    data = listed(tmp_path / "csv", "path,label,split", "a.mp4,x,train", "b.mp4,y,train", "c.mp4,,test")
    with pytest.raises(InputError, match=r"line 4: .*test"):
        open_source(str(data))
    with pytest.raises(InputError, match=r"test/_unlabelled"):
        open_source(str(touched(tmp_path / "a", "train/x/1.mp4", "train/y/2.mp4", "test/_unlabelled/3.mp4")))
    with pytest.raises(InputError, match="unlabelled"):
        open_source(str(touched(tmp_path / "b", "_unlabelled/3.mp4")))
    assert len(open_source(str(tmp_path / "b"), for_training=False).unlabelled) == 1  # to be annotated
    with pytest.raises(InputError, match=r"line 3: .*_unlabelled"):
        open_source(str(listed(tmp_path / "c", "path,label", "a.mp4,x;y", "b.mp4,x;_unlabelled")))


def test_splits_groups_and_warnings_are_those_without_unlabelled_videos(tmp_path):
    labelled = [f"{label}/film {film} (1).mp4" for label in "xy" for film in range(8)]
    touched(tmp_path / "without", *labelled)
    touched(tmp_path / "with", *labelled, *(f"_unlabelled/other {film} (2).mp4" for film in range(40)))
    found = []
    for folder in ("without", "with"):
        source = with_groups(open_source(str(tmp_path / folder)), "auto", QUIET)
        source = with_drawn_splits(source, Config())
        warnings = training_warnings(source, Config(), drawn=True)
        found.append(([(video.name, video.split, video.group) for video in source.videos], source.warnings, warnings))
    assert found[0] == found[1]


def test_an_unlabelled_video_that_looks_like_a_test_video_is_warned_of(tmp_path):
    rows = ["v/tape1_01.mp4,x,train,", "v/tape2_07.mp4,x,test,", "v/pool.mp4,y,train,", "v/rink.mp4,y,test,film 9"]
    data = listed(
        tmp_path, "path,label,split,group", *rows, "u/tape2_08.mp4,,,", "u/gym.mp4,,,film 9", "u/street.mp4,,,"
    )
    (warning,) = (
        line for line in with_checked_splits(open_source(str(data)), Config(), QUIET).warnings if "unlabelled" in line
    )
    assert "2 of 3" in warning
    assert "u/tape2_08.mp4 and v/tape2_07.mp4 (names)" in warning
    assert "u/gym.mp4 and v/rink.mp4 (group)" in warning


def mixed_sampler(labelled=50, unlabelled=600, batch=16, share=0.75, process=0, processes=1, accumulate=1):
    training = TrainingConfig(batch_size=batch, accumulate=accumulate)
    config = Config(seed=1, data=DataConfig(unlabelled_share=share), training=training)
    return StepSampler([("a",)] * labelled, config, process, processes, unlabelled)


def test_50_labelled_and_600_unlabelled_clips_mix_in_every_batch():
    sampler, seen = mixed_sampler(), []
    for epoch in range(5):
        sampler.start(epoch, 0)
        batches = list(sampler)
        keys = [key for batch in batches for key in batch]
        assert len({draw for _, draw, _ in keys}) == len(keys)  # each clip has a seed of its own
        assert [sum(index >= 50 for _, _, index in batch) for batch in batches] == [12] * 12
        assert len({index for _, _, index in keys if index < 50}) == 48  # an epoch is a pass over the labelled videos
        seen += [index for _, _, index in keys if index >= 50]
    assert sorted(seen[:600]) == list(range(50, 650))  # each once, from epoch to epoch
    assert len(seen) == 720


@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (2, 2)])
def test_processes_and_accumulated_batches_share_the_mix(processes, accumulate):
    steps = list(mixed_sampler())
    shares = [list(mixed_sampler(process=p, processes=processes, accumulate=accumulate)) for p in range(processes)]
    for step, clips in enumerate(steps):
        batches = [batch for share in shares for batch in share[step * accumulate : (step + 1) * accumulate]]
        assert sorted(key for batch in batches for key in batch) == sorted(clips)
        counts = [sum(index >= 50 for _, _, index in batch) for batch in batches]
        assert counts == [12 / len(batches)] * len(batches)


def test_a_mixed_epoch_resumes_at_a_step():
    sampler = mixed_sampler(accumulate=2)
    sampler.start(3, 0)
    whole = list(sampler)
    sampler.start(3, 5)
    assert list(sampler) == whole[10:]


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "batch", "share", "expected"),
    [(50, 600, 16, 0.0, (16, 0)), (50, 3, 16, 0.5, (13, 3)), (4, 600, 16, 0.5, (4, 4)), (50, 600, 16, 0.01, (15, 1))],
)
def test_the_mix_never_repeats_a_video_in_a_step(labelled, unlabelled, batch, share, expected):
    sampler = mixed_sampler(labelled, unlabelled, batch, share)
    assert (sampler.labelled_clips, sampler.unlabelled_clips) == expected
    assert len(list(sampler)) == len(sampler) == labelled // expected[0]


@pytest.mark.parametrize("multi_label", [False, True])
def test_clips_of_unlabelled_videos_have_no_target(source, multi_label):
    first, second = source.split("train")[:2]
    config = Config(clip=ClipConfig(4, stride=1, size=64), data=DataConfig(workers=0))
    clips = TrainingClips([first], config, source.classes, multi_label, {}, unlabelled=[replace(second, labels=())])
    batch = clips.collate([clips[0, 0, 0], clips[0, 1, 1]])
    assert has_label(batch.target).tolist() == [True, False]
    assert (batch.target[1] == NO_CLASS).all()
    assert batch.names == [first.name, second.name]


@pytest.mark.parametrize("target", [torch.tensor([2, 0, 1]), torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]])])
def test_action_losses_skip_unlabelled_clips(target):
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mixed = torch.cat((target, torch.full_like(target[:2], NO_CLASS)))
    loss = action_loss(logits, mixed, 0.1)
    assert loss.item() == pytest.approx(action_loss(logits[:3], target, 0.1).item(), rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[:3].any()
    assert not logits.grad[3:].any()
