"""The version of the distribution, read by the build and by `stroma_otel.__version__`."""

__version__ = "1.0.0"
