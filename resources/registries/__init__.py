"""The protocol of a model registry, and what is recorded of a model version."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from resources.errors import TransientError, UserError
from resources.keys import ModelKey


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What was last known of a file: while size and time are the same, so is its content.

    `mtime_ns` is 0, which no file has, where the file was so young when it was read that a later change
    might have got the same time.
    """

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A model version that was fetched, verified and measured."""

    key: str
    digest: str
    """SHA-256 over the sorted ``(relative path, SHA-256 of the content)`` of its files."""
    path: str
    """The local folder that holds its files."""
    architecture: str
    parameters: int
    weight_bytes: int
    bytes_by_dtype: Mapping[str, int]
    context_length: int
    vocabulary: int
    layers: int
    kv_bytes_per_token: int
    """Bytes of keys and values that one token takes in the cache, at the weights' own dtype."""
    chat_template: bool
    tied_embeddings: bool = False
    """The output layer shares the embedding's weights; they count once in `parameters`."""
    revision: str = ""
    """What its registry said of the files when they were fetched (`Registry.revision`)."""
    files: Mapping[str, FileFacts] = field(default_factory=dict)
    """Relative path -> facts: what spares the next measurement hashing files that haven't changed."""

    @property
    def name(self) -> str:
        return ModelKey.parse(self.key).name

    @property
    def version(self) -> str:
        return ModelKey.parse(self.key).version

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelVersion":
        """The inverse of `as_dict`, also after a way through JSON."""
        facts = {path: FileFacts(**entry) for path, entry in values.get("files", {}).items()}
        return cls(**{**values, "files": facts})


@dataclass(frozen=True, slots=True)
class Skipped:
    """What looks like a version but can't be one (yet): its place in the registry, and why."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class Listing:
    """Versions of a registry, oldest first where it knows their age, and the cursor to go on from."""

    keys: tuple[ModelKey, ...]
    cursor: str
    skipped: tuple[Skipped, ...] = ()


class RegistryUnavailableError(TransientError):
    """The registry does not answer now; asking again later may help. The text names it and the reason."""


class VersionNotThereError(UserError):
    """The registry does answer, and has no such version (any more).

    Any other UserError (a token that is refused, a folder that isn't mounted) says nothing about that.
    """


class UnknownModelError(VersionNotThereError):
    """The registry does answer, and has no model of that name: no version of it either."""


class AliasMovedError(UserError):
    """Somebody else moved the alias in between; their choice stands."""


class Registry(Protocol):
    """Where model versions come from, and where what was found out about them goes.

    Every method raises UserError for what a user can put right, and RegistryUnavailableError where the
    registry does not answer (refused, timed out, 429, 5xx) although it was asked repeatedly.
    """

    root: str
    """The folder or URL that holds them, as errors name it."""

    def versions(self, since: str = "") -> Listing:
        """The versions that were registered after the cursor `since` was made; "" for all there are.

        A version may be listed twice, but none is ever left out: a cursor that the registry can't use any
        more lists everything. Entries that are no legal key or not complete are in `skipped`.
        """
        ...

    def revision(self, key: ModelKey) -> str:
        """A cheap identity of the version's content: while it is the same, so are the files.

        Raises VersionNotThereError for a key that the registry doesn't have (any more), and only then.
        """
        ...

    def fetch(self, key: ModelKey) -> Path:
        """A local folder with the version's files, complete. Raises UserError for an unknown key."""
        ...

    def aliases(self, name: str) -> Mapping[str, str]:
        """Alias -> version of a model, for example ``{"champion": "3"}``.

        Raises UnknownModelError for a model that the registry doesn't have.
        """
        ...

    def move_alias(self, name: str, alias: str, version: str, expected: str | None) -> None:
        """Point the alias to a version if it is at `expected` (None: not set) now, or there already.

        Raises AliasMovedError where it is somewhere else, naming both, and UserError for a version that the
        registry doesn't have.
        """
        ...

    def annotate(self, key: ModelKey, notes: Mapping[str, str]) -> None:
        """Leave notes on a version where its registry shows them, replacing those of the same names.

        Raises UserError for a key that the registry doesn't have.
        """
        ...
