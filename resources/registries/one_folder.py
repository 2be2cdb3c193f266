"""One model's folder, wherever it lies, as a registry with one version."""

from collections.abc import Mapping
from pathlib import Path

from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries import Listing
from resources.registries.folder import FolderRegistry


class OneFolderRegistry(FolderRegistry):
    """The folder registry's rules (complete, no foreign links, revisions) for a folder that is in none."""

    def __init__(self, folder: Path, key: ModelKey) -> None:
        super().__init__(str(folder.parent))
        self._folder, self._key = folder.name, key
        self.root = str(folder)

    def versions(self, since: str = "") -> Listing:
        """The one version."""
        cursor = self.revision(self._key)
        return Listing(() if since == cursor else (self._key,), cursor)

    def aliases(self, name: str) -> Mapping[str, str]:
        """None: there is nobody to point to it."""
        self._check(name)
        return {}

    def move_alias(self, name: str, alias: str, version: str, expected: str | None) -> None:
        """Raises UserError."""
        del version, expected
        self._check(name)
        raise UserError(
            f"model {name}: {self.root} is in no registry, so there is no alias {alias!r} to move"
        )

    def annotate(self, key: ModelKey, notes: Mapping[str, str]) -> None:
        """Nothing is written beside a model that is in no registry."""
        del notes
        self._check(key.name)

    def _known(self, key: ModelKey) -> str:
        if key != self._key:
            raise UserError(f"model {key}: {self.root} is {self._key}")
        path = Path(self.root)
        if not (path / "config.json").is_file():
            raise UserError(f"{path} holds no config.json: it is no folder of a Hugging Face model")
        return self._folder

    def _check(self, name: str) -> None:
        if name != self._key.name:
            raise UserError(f"model {name}: {self.root} is {self._key}")
