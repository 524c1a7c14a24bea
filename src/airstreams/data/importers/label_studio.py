"""Label Studio's JSON and JSON-MIN exports of video tasks.

A task has `data` with the video and `annotations`, each with `result`s. `choices` label the whole video.
`timelinelabels` have ranges of frames, counted from 1, both ends inclusive. `labels` have times in seconds.
"""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from airstreams.data.importers.annotation import Annotation, Found, chosen, number

NAME = "Label Studio"
_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what the tool puts before the name of an uploaded file


def recognise(content: Any) -> bool:
    """Whether this is an export's list of tasks."""
    if not isinstance(content, list) or not content or not all(isinstance(task, dict) for task in content):
        return False
    whole = isinstance(content[0].get("data"), dict) and "annotations" in content[0]
    return whole or ("annotator" in content[0] and _video_of(content[0]) is not None)


def read(content: list[dict[str, Any]], tier: str | None, given: str) -> Found:
    """The labels of all tasks. `tier` is the name of the control (`from_name`) that holds them."""
    found = Found()
    results = list(_results(content, found))
    control = chosen("control", (name for _, name, _, _ in results), tier, given)
    for media, name, where, value in results:
        if name == control:
            _read_value(media, where, value, found)
    return found


def _results(content: list[dict[str, Any]], found: Found) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """For each label: the video, the control, the place in the file, and its value."""
    for number_, task in enumerate(content, 1):
        where = f"task {task.get('id', number_)}"
        data = task.get("data") if isinstance(task.get("data"), dict) else task
        media = _video_of(data)  # type: ignore[arg-type]
        if media is None:
            found.wrong.append(f"{where}: no video in its data")
            continue
        if "annotations" not in task:
            yield from _minimal(media, where, task)
            continue
        done = [one for one in task["annotations"] or () if not one.get("was_cancelled")]
        if len(done) > 1:
            found.notes.append(f"{where} has {len(done)} annotations. The ground truth, or else the first, is taken.")
        best = sorted(done, key=lambda one: not one.get("ground_truth"))[:1]
        for result in (result for one in best for result in one.get("result") or ()):
            if isinstance(result.get("value"), dict):
                yield media, str(result.get("from_name", "")), where, result["value"]


def _minimal(media: str, where: str, task: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """The labels of JSON-MIN, where each control is a key of the task: a choice, choices, or a list of ranges."""
    own = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time"}
    for name, value in task.items():
        if name in own or value == media or _video_name(value):
            continue
        if isinstance(value, str):
            yield media, name, where, {"choices": [value]}
        elif isinstance(value, dict) and "choices" in value:
            yield media, name, where, value
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, dict):
                    yield media, name, where, item


def _read_value(media: str, where: str, value: dict[str, Any], found: Found) -> None:
    if "choices" in value:
        found.annotations += [Annotation(media, str(label), where) for label in value["choices"]]
        return
    labels = [str(label) for key in ("timelinelabels", "labels") for label in value.get(key) or ()]
    spans: list[dict[str, Any]] = []
    if "ranges" in value:
        for span in value["ranges"] or ():
            first, last = number(span.get("start")), number(span.get("end"))
            if first is None or last is None or first < 1:
                found.wrong.append(f"{where}: a range is {span}")
            else:
                spans.append({"frames": (int(first) - 1, int(last) - 1)})
    elif "start" in value and "end" in value:
        start, end = number(value["start"]), number(value["end"])
        if start is None or end is None:
            found.wrong.append(f"{where}: a range is {value['start']} to {value['end']}")
        else:
            spans.append({"start": start, "end": end})
    elif "sequence" in value:
        spans += _shown(value["sequence"])
    for label in labels:
        found.annotations += [Annotation(media, label, where, **span) for span in spans]


def _shown(sequence: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts of a video rectangle: from an enabled key frame to the next one that is not enabled, or the last."""
    parts: list[dict[str, Any]] = []
    begun: int | None = None
    frames = [int(item["frame"]) - 1 for item in sequence if "frame" in item]
    for item in sequence:
        if begun is None and item.get("enabled", True):
            begun = int(item["frame"]) - 1
        elif begun is not None and not item.get("enabled", True):
            parts.append({"frames": (begun, int(item["frame"]) - 1)})
            begun = None
    return [*parts, {"frames": (begun, frames[-1])}] if begun is not None else parts


def _video_of(data: dict[str, Any]) -> str | None:
    for key in ("video", "video_url", "url", "file"):
        if isinstance(data.get(key), str):
            return _file_of(data[key])
    return next((_file_of(value) for value in data.values() if _video_name(value)), None)


def _video_name(value: object) -> bool:
    return isinstance(value, str) and re.search(r"\.(mp4|webm|avi|mkv|mov|m4v|ogv)($|\?)", value.lower()) is not None


def _file_of(url: str) -> str:
    """The file of an address of Label Studio: of an upload, of local storage (`?d=FOLDER/FILE`), or of a server."""
    parts = urlsplit(url)
    if local := parse_qs(parts.query).get("d"):
        return local[0]
    path = unquote(parts.path)
    folder, slash, name = path.rpartition("/")
    if "/upload/" in path:
        return _UPLOADED.sub("", name)
    return f"{folder}{slash}{name}" if not parts.netloc else name
