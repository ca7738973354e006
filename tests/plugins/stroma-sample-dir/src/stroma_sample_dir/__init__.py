"""A checkpoint store in a folder: a subfolder for each run."""
