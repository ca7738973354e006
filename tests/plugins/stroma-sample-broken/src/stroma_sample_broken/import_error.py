"""A plugin that cannot be imported."""

import stroma_sample_driver_that_nobody_has  # noqa: F401
