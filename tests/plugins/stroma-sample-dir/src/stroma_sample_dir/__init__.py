"""A checkpoint store in a folder: a file for each state."""

from stroma_sample_dir.store import DirStore

__all__ = ["DirStore"]
