"""The protocol of a model registry, and what is recorded of a model version."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

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


class Registry(Protocol):
    """Where model versions come from."""

    root: str
    """The folder or URL that holds them, as errors name it."""

    def versions(self) -> Iterator[ModelKey]:
        """Every version there is, in a stable order. Entries that are no legal key are skipped."""
        ...

    def skipped(self) -> list[tuple[str, str]]:
        """What looks like a version but can't be one: its place below the root, and why."""
        ...

    def fetch(self, key: ModelKey) -> Path:
        """A local folder with the version's files, complete. Raises UserError for an unknown key."""
        ...
