"""What the entry point names. It is imported by `import stroma`, and so has to be light."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from stroma import hookimpl
from stroma.failures import Classifier, FailureClass, NodeContext
from stroma.registry import ClassifierRegistry, StoreRegistry

if TYPE_CHECKING:
    from stroma_sample_dir.options import DirOptions
    from stroma_sample_dir.store import DirStore

STROMA_API = 1


class DirFactory:
    """Makes `DirStore`s; a `stroma.registry.StoreFactory`."""

    @property
    def options(self) -> type[DirOptions]:
        """The model of the options, imported when it is asked for."""
        from stroma_sample_dir.options import DirOptions

        return DirOptions

    def from_url(self, url: str) -> Mapping[str, object]:
        """Read ``dir:///folder``."""
        path = unquote(urlsplit(url).path.removeprefix("/"))
        if not path:
            raise ValueError("a folder is missing, as in dir:///states")
        return {"path": path}

    def open(self, options: DirOptions) -> DirStore:
        """Return the store."""
        from stroma_sample_dir.store import DirStore

        return DirStore(options.path)


def disk_full(exc: Exception, ctx: NodeContext) -> FailureClass | None:
    """Tell that a full disk may be emptied."""
    return FailureClass.RECOVERABLE if isinstance(exc, OSError) and exc.errno == 28 else None


def _disk_full() -> Classifier:
    return disk_full


@hookimpl
def stroma_register_stores(registry: StoreRegistry) -> None:
    """Offer the store."""
    registry.add("dir", DirFactory(), schemes=("dir",))


@hookimpl
def stroma_register_classifiers(registry: ClassifierRegistry) -> None:
    """Offer the classifier."""
    registry.add("disk-full", _disk_full)
