"""The neighbour of `twice_a`."""

from stroma_sample_broken.twice_a import stroma_register_stores

__all__ = ["stroma_register_stores"]
