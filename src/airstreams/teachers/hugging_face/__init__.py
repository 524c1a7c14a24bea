"""Models of Hugging Face transformers as teachers."""

from airstreams.teachers.hugging_face.segmentation import load

__all__ = ["load"]
