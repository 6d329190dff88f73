"""A model as it answers now: where no version is named, in the one that is the default."""

from server.catalog import Catalog, Served
from server.watch import DefaultWatch

__all__ = ["Lookup"]


class Lookup:
    """Finds what is served.

    Args:
        catalog: What is served.
        watch: Knows which versions are the default: that can be switched.
    """

    def __init__(self, catalog: Catalog, watch: DefaultWatch) -> None:
        self._catalog, self._watch = catalog, watch

    def find(self, name: str, version: str | None = None) -> Served | None:
        """A model, in its default version if none is named."""
        if version is None and len(self._catalog.versions(name)) > 1:
            # Where TorchServe does not answer, the one it was started with.
            return self._catalog.find(name, self._watch.default(name)) or self._catalog.find(name)
        return self._catalog.find(name, version)

    def defaults(self) -> list[Served]:
        """Each model in its default version, sorted by name."""
        return [served for name in self._catalog.names if (served := self.find(name))]
