"""What a Hub says of its repositories: refs, the files of a commit, an organization's models."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated
from urllib.parse import quote

from pydantic import BaseModel, Field, TypeAdapter

from resources.registries.files import Seen
from resources.registries.hub_client import Budget, HubClient

_LARGEST_FILE = 50_000_000_000
"""Bytes that the Hub gives out over plain HTTP (`MAX_HTTP_DOWNLOAD_SIZE` of huggingface_hub)."""

_HISTORY_PAGES = 20

_SUPPORTING = re.compile(
    r"[^./][^/]*\.(json|jinja|model|tiktoken|spm)|(vocab|merges)[^/]*\.txt|additional_chat_templates/[^./][^/]*\.jinja"
)
"""Configuration, tokenizer, chat templates. Other folders hold other formats (onnx/, original/)."""

_SHARD = re.compile(r"(?!consolidated)[^./][^/]*-\d+-of-\d+\.safetensors")
"""`consolidated…` beside them are the same weights a second time, in Mistral's own layout."""

_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".h5")


class _Lfs(BaseModel):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class _File(BaseModel):
    rfilename: str
    size: Annotated[int, Field(ge=0)] = 0
    blob_id: Annotated[str, Field(alias="blobId", pattern=r"^[0-9a-f]{40}$")]
    lfs: _Lfs | None = None

    def seen(self) -> Seen:
        if self.lfs is not None:
            return Seen(self.lfs.size, f"sha256:{self.lfs.sha256}")
        return Seen(self.size, f"git:{self.blob_id}")


_Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class _Info(BaseModel):
    gated: bool | str = False
    siblings: list[_File]


class Ref(BaseModel):
    """A branch or tag, and the whole SHA of the commit that it names."""

    name: str
    target: Annotated[_Commit, Field(alias="targetCommit")]


class Refs(BaseModel):
    """A repository's branches and tags."""

    branches: list[Ref]
    tags: list[Ref]


class Listed(BaseModel):
    """A model as a listing shows it: the head of its default branch, and its labels."""

    id: str
    sha: str = ""
    tags: list[str] = []


class _Past(BaseModel):
    id: _Commit


_INFO, _REFS = TypeAdapter(_Info), TypeAdapter(Refs)
_LISTED, _PAST = TypeAdapter(list[Listed]), TypeAdapter(list[_Past])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A commit's files that a load reads, and why they are no model ("" if they are one)."""

    files: Mapping[str, Seen]
    fault: str
    gated: bool

    @property
    def digest(self) -> str:
        """16 hex digits that change with the files."""
        lines = (f"{path}\0{seen.identity}\n" for path, seen in sorted(self.files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


class HubReader:
    """Questions about repositories; each raises what `HubClient` raises, naming the repository."""

    def __init__(self, client: HubClient) -> None:
        self._client = client

    def refs(self, repo: str, budget: Budget) -> Refs:
        """The branches and tags, and what they name now."""
        return self._client.read(_REFS, f"/api/models/{repo}/refs", f"model {repo}", budget)

    def snapshot(self, repo: str, commit: str, budget: Budget) -> Snapshot:
        """The files at a commit. They can be listed without the access that reading them takes."""
        path = f"/api/models/{repo}/revision/{commit}"
        info = self._client.read(_INFO, path, f"model {repo}", budget, {"blobs": "true"})
        files = _that_count(info.siblings)
        return Snapshot(files, _fault(files, [file.rfilename for file in info.siblings]), bool(info.gated))

    def check_access(self, repo: str, budget: Budget) -> None:
        """Raise UserError where the files of a gated repository may not be read."""
        self._client.ask(f"/api/models/{repo}/auth-check", f"model {repo}", budget)

    def models_of(self, organization: str, budget: Budget) -> Iterator[Listed]:
        """The organization's text-generation models."""
        asked = {
            "author": organization,
            "pipeline_tag": "text-generation",
            "limit": "500",
            "expand": ["sha", "tags"],
        }
        for page in self._client.pages(_LISTED, "/api/models", f"organization {organization}", budget, asked):
            yield from page

    def commits(self, repo: str, branch: str, prefix: str, budget: Budget) -> tuple[set[str], bool]:
        """The commits of a branch that start with these digits, and whether those are all.

        Of a long history the youngest thousand or so are looked at.
        """
        # The Hub itself resolves whole SHAs only.
        path = f"/api/models/{repo}/commits/{quote(branch, safe='')}"
        pages = self._client.pages(_PAST, path, f"model {repo}", budget)
        past = (commit.id for page in islice(pages, _HISTORY_PAGES) for commit in page)
        found = {commit for commit in past if commit.startswith(prefix)}
        return found, next(pages, None) is None


def _that_count(files: Iterable[_File]) -> dict[str, Seen]:
    everything = {file.rfilename: file.seen() for file in files}
    weights = {"model.safetensors"} & everything.keys() or {p for p in everything if _SHARD.fullmatch(p)}
    return {
        path: seen
        for path, seen in sorted(everything.items())
        if path in weights or _SUPPORTING.fullmatch(path)
    }


def _fault(files: Mapping[str, Seen], everything: Sequence[str]) -> str:
    """Why a commit's files are no model that can be evaluated, and what to do; "" if they are one."""
    if "adapter_config.json" in files:
        return "an adapter (adapter_config.json); merge it into its base model and upload that"
    if not any(path.endswith(".safetensors") for path in files):
        others = sorted(path for path in everything if path.endswith(_OTHER_WEIGHTS))
        only = f", only {others[0]}" if others else ""
        return f"no safetensors{only}; upload its weights with model.push_to_hub()"
    if "config.json" not in files:
        return "no config.json; expected a repository in the Hugging Face layout"
    for path, seen in files.items():
        if seen.size > _LARGEST_FILE:
            return (
                f"{path} has {seen.size / 1e9:,.0f} GB, and the Hub gives out at most "
                f"{_LARGEST_FILE / 1e9:,.0f} GB in one file; upload it again with max_shard_size='5GB'"
            )
    return ""
