"""CVAT's XML, version 1.1: "CVAT for video" and "CVAT for images" of a video task.

In the first a track has a shape for each frame, and `outside="1"` where the object is gone: the frames between make a
part of the video with the track's label. In the second each frame may have tags: frames in a row with the same tag make
a part.
"""

from collections import defaultdict
from xml.etree.ElementTree import Element

from airstreams.data.importers.annotation import Annotation, Found

NAME = "CVAT"


def recognise(content: object) -> bool:
    """Whether this is the root of an export."""
    return isinstance(content, Element) and content.tag == "annotations"


def read(content: Element, tier: str | None, given: str) -> Found:
    """The tracks and tags of all tasks of the export."""
    found = Found()
    tasks = {task.findtext("id") or "": task for task in content.iter("task")} or {"": Element("task")}
    jobs = list(content.iter("job"))
    frames: dict[tuple[str, str], set[int]] = defaultdict(set)
    for track in content.iter("track"):
        owner, label = track.get("task_id") or next(iter(tasks)), track.get("label", "")
        where = f"track {track.get('id')}"
        try:
            shown = sorted((int(shape.get("frame", "")), shape.get("outside") == "1") for shape in track)
        except ValueError:
            found.wrong.append(f"{where}: a frame is no number")
            continue
        for first, last in _parts(shown):
            frames[owner, label].update(range(first, last + 1))
    for image in content.iter("image"):
        for tag in image.iter("tag"):
            owner = image.get("task_id") or next(iter(tasks))
            if not (image.get("id") or "").isdigit():
                found.wrong.append(f"image {image.get('name')}: its id is no number")
                continue
            frames[owner, tag.get("label", "")].add(int(image.get("id", "")))
    for (name, label), numbers in frames.items():
        task = tasks.get(name, next(iter(tasks.values())))
        media = _media(content, task, jobs)
        if media is None:
            found.wrong.append(f"task {name}: it names no video (source)")
            continue
        start, step = _frame_step(task)
        for first, last in _runs(numbers):
            # The part ends where the next annotated frame would begin.
            places = (start + first * step, start + (last + 1) * step - 1)
            found.annotations.append(Annotation(media, label, f"task {name or '1'}, frame {first}", frames=places))
    return found


def _parts(shown: list[tuple[int, bool]]) -> list[tuple[int, int]]:
    """The first and last frame of each part of a track in which its object is there."""
    parts, begun, last = [], None, 0
    for frame, outside in shown:
        if begun is not None and outside:
            parts.append((begun, frame - 1))
            begun = None
        elif begun is None and not outside:
            begun = frame
        last = frame
    return [*parts, (begun, last)] if begun is not None else parts


def _runs(numbers: set[int]) -> list[tuple[int, int]]:
    """The first and last of each run of numbers without a gap."""
    runs: list[tuple[int, int]] = []
    for value in sorted(numbers):
        if runs and runs[-1][1] == value - 1:
            runs[-1] = (runs[-1][0], value)
        else:
            runs.append((value, value))
    return runs


def _media(content: Element, task: Element, jobs: list[Element]) -> str | None:
    for element in (task, *jobs, content):
        if source := element.findtext("source") or element.findtext("meta/source"):
            return source
    return None


def _frame_step(task: Element) -> tuple[int, int]:
    """The video's frame of the task's frame 0, and the step between its frames."""
    start = task.findtext("start_frame") or "0"
    step = (task.findtext("frame_filter") or "").replace(" ", "").removeprefix("step=")
    return int(start) if start.isdigit() else 0, int(step) if step.isdigit() and int(step) else 1
