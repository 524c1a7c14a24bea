"""A vote of label maps that are on the disk already: no video is decoded, and no teacher runs."""

import time
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import numpy as np
from rich.console import Console

from airstreams.console import Progress
from airstreams.data.content import keys_by_content, with_contents
from airstreams.data.label_maps import LabelMapWriter, LabelStore, create, file_of, resized
from airstreams.data.listing import Source
from airstreams.distributed import SharedProgress, gather, is_main_process, share
from airstreams.errors import InputError, VideoError
from airstreams.teachers.annotate import AnnotationResult
from airstreams.teachers.ensemble import PREFIX, common_classes, common_ids, members_of, vote

CHUNK = 64  # frames that are voted on at once


def stores_of(spec: str) -> list[LabelStore]:
    """The label stores of `ensemble:LABELS,LABELS`; none if its members are teachers.

    InputError: it has both, or a folder is no label store.
    """
    names = members_of(spec)
    folders = [Path(name) for name in names if Path(name).is_dir()]
    if 0 < len(folders) < len(names):
        others = ", ".join(name for name in names if not Path(name).is_dir())
        raise InputError(
            f"--teacher {spec}: {folders[0]} has label maps, but {others} is a teacher. Run `airstreams annotate` with "
            "it first, and give folders alone."
        )
    return [LabelStore.open(folder) for folder in folders]


def vote_of_stores(
    source: Source, stores: Sequence[LabelStore], votes: int, stride: int, out: Path, console: Console
) -> AnnotationResult:
    """Add the missing label maps of all files to the store `out`: the vote of several stores, see `vote`.

    A frame gets a label map if all stores have one of it. Smaller label maps are enlarged to the largest ones.

    Args:
        source: the videos.
        stores: of several teachers.
        votes: how many of them must name a class.
        stride: every n-th frame gets a label map, starting with the first one.
        out: the folder of the result.
        console: shows the progress.

    Raises:
        InputError: `out` has other label maps, or a store has none of these videos.
    """
    began = time.perf_counter()
    classes = common_classes([store.classes for store in stores])
    if is_main_process():
        _open(out, stores, classes, {"stride": stride, "votes": votes})
    source = with_contents(source, console)
    paths = {video.label_map or video.name: video.path for video in source.all_videos}
    keys_of = [_keys_in(store, source, console) for store in stores]
    ids = [common_ids(store.classes, classes) for store in stores]
    labelled, left_out = 0, list[tuple[str, str]]()
    with Progress(console if is_main_process() else Console(quiet=True)) as progress:
        own = share(sorted(paths))
        task = progress.add_task("voting", len(own), "files", shared=SharedProgress())
        for key in own:
            try:
                if not file_of(out, key).is_file():
                    labelled += _vote_on(key, stores, [keys[key] for keys in keys_of], ids, votes, stride, out)
            except VideoError as error:
                left_out.append((str(paths[key]), error.reason))
            task.advance()
    labelled, left_out = sum(gather([labelled])), sorted(gather(left_out))
    if is_main_process():
        contents = {video.label_map or video.name: video.content for video in source.all_videos}
        known = {key: content for key, content in contents.items() if content and file_of(out, key).is_file()}
        LabelStore.open(out).write_contents(known)
    return AnnotationResult(len(paths), labelled, time.perf_counter() - began, left_out, [])


def _open(out: Path, stores: Sequence[LabelStore], classes: tuple[str, ...], settings: dict[str, int]) -> None:
    """Create the store, or check that an existing one is of the same vote."""
    teacher = PREFIX + ",".join(store.teacher for store in stores)
    about = {**settings, "stores": [store.identity for store in stores]}
    if (out / "labels.json").exists():
        store = LabelStore.open(out)
        if (store.teacher, store.classes, store.settings) != (teacher, classes, about):
            raise InputError(f"--out {out} has label maps of another teacher or vote. Give another --out.")
    elif out.is_dir() and not all(path.name.startswith(".") for path in out.iterdir()):
        raise InputError(f"--out {out} is not empty and has no label maps. Give a new folder.")
    else:
        mirrored = dict.fromkeys(pair for store in stores for pair in store.mirrored)
        create(out, teacher, classes, about, list(mirrored))


def _keys_in(store: LabelStore, source: Source, console: Console) -> dict[str, str | None]:
    """The key in a store by the key of the result."""
    own = {video.name: video.label_map or video.name for video in source.all_videos}
    found: dict[str, str | None] = {**own}
    if store.knows_contents:
        found = keys_by_content(store, source.all_videos, own, console)
    return {own[name]: key for name, key in found.items()}


def _vote_on(
    key: str,
    stores: Sequence[LabelStore],
    keys: Sequence[str | None],
    ids: Sequence[np.ndarray],
    votes: int,
    stride: int,
    out: Path,
) -> int:
    """Write the label maps of one file; returns how many. VideoError: a store lacks them."""
    frames_of = []
    for store, of_store in zip(stores, keys, strict=True):
        if of_store is None or not store.has(of_store):
            raise VideoError(f"no label maps in {store.root}")
        frames_of.append(store.labelled_frames(of_store))
    frames = reduce(np.intersect1d, frames_of)
    frames = frames[frames % stride == 0]
    if not len(frames):
        raise VideoError("no frame that all label stores have")
    writer = LabelMapWriter(out, key)
    try:
        for start in range(0, len(frames), CHUNK):
            part = frames[start : start + CHUNK]
            maps = []
            for store, of_store, of_member in zip(stores, keys, ids, strict=True):
                read = store.read(of_store or key, part)
                assert read is not None
                maps.append(of_member[read])
            size = max((one.shape[-2:] for one in maps), key=lambda shape: shape[0] * shape[1])
            for frame, label_map in zip(part.tolist(), vote([resized(one, size) for one in maps], votes), strict=True):
                writer.add(frame, label_map)
        writer.finish()
    except BaseException:
        writer.discard()
        raise
    return len(frames)
