"""Projects of the VGG Image Annotator 3 (Dutta and Zisserman 2019), JSON.

`file` has the media, `view` which files are shown together, `metadata` the annotations: `vid` is the view, `z` the
times in s (none: the whole video, one: a point, two: a part), `av` the value of each attribute. The value of a choice
is the number of an option.
"""

from typing import Any

from airstreams.data.importers.annotation import Annotation, Found, chosen, number

NAME = "VIA"


def recognise(content: Any) -> bool:
    """Whether this is the content of a project of version 3."""
    return isinstance(content, dict) and {"project", "attribute", "file", "metadata", "view"} <= content.keys()


def read(content: dict[str, Any], tier: str | None, given: str) -> Found:
    """The annotations of one attribute. `tier` is its name."""
    found = Found()
    names = {key: str(attribute.get("aname", key)) for key, attribute in content["attribute"].items()}
    annotated = [names[key] for entry in content["metadata"].values() for key in entry.get("av", {}) if key in names]
    name = chosen("attribute", annotated, tier, given)
    regions = 0
    for key, entry in content["metadata"].items():
        where = f"annotation {key}"
        media = _media(content, entry.get("vid"))
        if media is None:
            found.wrong.append(f"{where}: its view {entry.get('vid')} has no file")
            continue
        if entry.get("xy"):
            regions += 1
            continue
        times = [number(time) for time in entry.get("z") or ()]
        if None in times or len(times) > 2:
            found.wrong.append(f"{where}: its times are {entry.get('z')}")
            continue
        start, end = [*times, None, None][:2]
        for attribute, value in entry.get("av", {}).items():
            if names.get(attribute) == name:
                for label in _labels(content["attribute"][attribute], str(value)):
                    point = len(times) == 1
                    found.annotations.append(Annotation(media, label, where, start, end, is_point=point))
    if regions:
        found.notes.append(f"{regions} annotations are regions of a frame. They are ignored.")
    return found


def _media(content: dict[str, Any], view: object) -> str | None:
    files = content["view"].get(str(view), {}).get("fid_list") or ()
    file = content["file"].get(str(files[0]), {}) if files else {}
    return file.get("src") or file.get("fname")


def _labels(attribute: dict[str, Any], value: str) -> list[str]:
    """The texts of an attribute's value; a checkbox may have several options, with commas between them."""
    options = attribute.get("options") or {}
    keys = [value] if value in options else value.split(",")
    texts = [str(options.get(key.strip(), key)).strip() for key in keys] if options else [value.strip()]
    return [text for text in texts if text]
