"""ELAN annotation files, .eaf (EAF schema 2.7 to 3.0 of the Max Planck Institute for Psycholinguistics).

A tier has annotations between two time slots, in ms. Annotations that refer to others have no times of their own.
"""

from xml.etree.ElementTree import Element

from airstreams.data.importers.annotation import Annotation, Found, chosen, number

NAME = "ELAN"


def recognise(content: object) -> bool:
    """Whether this is the root of an .eaf file."""
    return isinstance(content, Element) and content.tag == "ANNOTATION_DOCUMENT"


def read(content: Element, tier: str | None, given: str) -> Found:
    """The annotations of one tier. The value of each is its label."""
    found = Found()
    media, offset = _media(content, found)
    if media is None:
        found.wrong.append("the header names no media file")
        return found
    header = content.find("HEADER")
    unit = 1e-3 if header is None or header.get("TIME_UNITS", "milliseconds") == "milliseconds" else 1.0
    times = {slot.get("TIME_SLOT_ID"): number(slot.get("TIME_VALUE")) for slot in content.iter("TIME_SLOT")}
    tiers = {
        str(element.get("TIER_ID")): element
        for element in content.iter("TIER")
        if element.find("ANNOTATION/ALIGNABLE_ANNOTATION") is not None
    }
    name = chosen("tier", tiers, tier, given)
    if name is None:
        return found
    empty = 0
    for annotation in tiers[name].iter("ALIGNABLE_ANNOTATION"):
        where = f"tier {name}, annotation {annotation.get('ANNOTATION_ID')}"
        label = (annotation.findtext("ANNOTATION_VALUE") or "").strip()
        start, end = (times.get(annotation.get(f"TIME_SLOT_REF{number}")) for number in (1, 2))
        if not label:
            empty += 1
        elif start is None or end is None:
            found.wrong.append(f"{where}: a time slot has no time")
        else:
            found.annotations.append(Annotation(media, label, where, start * unit + offset, end * unit + offset))
    if empty:
        found.notes.append(f"Annotations without text are ignored: {empty} of the tier {name}.")
    return found


def _media(content: Element, found: Found) -> tuple[str | None, float]:
    """The first video, and the time in it, in s, at which the annotations' time begins."""
    files = [
        (descriptor.get("RELATIVE_MEDIA_URL") or descriptor.get("MEDIA_URL") or "", descriptor)
        for descriptor in content.iter("MEDIA_DESCRIPTOR")
    ]
    videos = [item for item in files if item[0] and not str(item[1].get("MIME_TYPE", "")).startswith("audio")]
    if not videos:
        header = content.find("HEADER")
        named = "" if header is None else header.get("MEDIA_FILE", "")
        return named or None, 0.0
    if len(videos) > 1:
        found.notes.append(f"The annotations of {len(videos)} videos are taken for the first, {videos[0][0]}.")
    url, descriptor = videos[0]
    return url, (number(descriptor.get("TIME_ORIGIN")) or 0.0) * 1e-3
