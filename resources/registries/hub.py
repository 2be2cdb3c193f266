"""The Hugging Face Hub as a registry: commits and tags of tracked repositories are the versions."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from resources.errors import UserError
from resources.keys import ModelKey, path_segment
from resources.registries import (
    Listing,
    RegistryUnavailableError,
    Skipped,
    UnknownModelError,
    VersionNotThereError,
)
from resources.registries.aliases import Labels
from resources.registries.copies import copy_version
from resources.registries.download import download, link_copy
from resources.registries.hub_client import Budget, HubClient, NotThereError, TokenRefusedError
from resources.registries.hub_repo import HubReader, Ref, Refs, Snapshot

_LOOK_SECONDS = 20.0
_AT_ONCE = 8
_TURNS = 20
"""Models of organizations that are asked for new tags in one look although their branch stands still. The Hub
counts requests: 1,000 in five minutes with a free account."""

_SHORT = 12
_HEX = re.compile(r"[0-9a-f]{7,40}")


@dataclass(frozen=True, slots=True)
class _Known:
    """What the last look at a repository found: head (short), digest of its files, a mark of each tag."""

    head: str = ""
    files: str = ""
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Look:
    keys: tuple[ModelKey, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    known: _Known | None = None
    failure: RegistryUnavailableError | None = None


class HubRegistry:
    """Versions of models on a Hugging Face Hub.

    `repos` are repositories, `organizations` names whose text-generation models with safetensors are all
    tracked, or patterns of them (``org/llama-*``). A version is a tag, ``org/model@v1.0``, or a commit that
    was the head of `branch` when it was looked at and that no tag names, ``org/model@93efa2fd3c1b``: the
    first 12 digits of its SHA, more where a tag has that name. A commit that changes no file that a load
    reads is no new version.

    Files are fetched by the whole SHA into `cache`; tag and commit share them. `notes` is a folder or URL for
    aliases and notes: the Hub is only read. The token is read from ``HF_TOKEN`` at each request.
    """

    def __init__(
        self,
        repos: Sequence[str],
        organizations: Sequence[str],
        cache: Path,
        notes: str,
        endpoint: str | None = None,
        branch: str = "main",
    ) -> None:
        self._client = HubClient(endpoint)
        self._reader = HubReader(self._client)
        self._repos = tuple(dict.fromkeys(_checked(repo) for repo in repos))
        self._patterns = tuple(
            dict.fromkeys(
                name if "/" in name else f"{name}/*" for name in map(_checked_pattern, organizations)
            )
        )
        self._cache = cache
        self._branch = branch
        self._labels = Labels(notes, self._exists)
        self.root = f"{self._client.endpoint} ({', '.join((*self._repos, *self._patterns))}; {branch})"

    def versions(self, since: str = "") -> Listing:
        """What is new since the cursor: commits that became head, new and moved tags; at first all tags.

        It takes at most about 20 seconds. A repository that can't be read (gone, gated, private, or no time
        left) is in `skipped` with what to do, and the next look asks it again. Where a branch of an
        organization's model stands still, its tags are looked at in turns, 20 models a look.

        Raises RegistryUnavailableError where nothing could be read, UserError for a token that is refused.
        """
        known, turn = _from_cursor(since)
        budget = Budget(_LOOK_SECONDS)
        heads, failed = self._members(budget)
        found = {repo: sha for repo, sha in heads.items() if repo not in self._repos}
        quiet = sorted(repo for repo, sha in found.items() if self._stands_still(known.get(repo), sha))
        after = [repo for repo in quiet if repo > turn]
        turns = [*after, *(repo for repo in quiet if repo <= turn)][:_TURNS]
        waiting = set(quiet).difference(turns)
        due = [*self._repos, *(repo for repo in found if repo not in waiting)]
        due.sort(key=lambda repo: repo in known)  # first what an earlier look had no time for
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            looks = dict(
                zip(due, pool.map(lambda repo: self._look(repo, known.get(repo), budget), due), strict=True)
            )

        everything = [*failed, *looks.values()]
        failures = [look.failure for look in everything if look.failure is not None]
        if failures and len(failures) == len(everything) and not found:
            raise failures[0]
        # A listing that failed says nothing about its models: what is known of them stays.
        lost = any(look.failure for look in failed)
        left = {
            repo: state
            for repo, state in known.items()
            if repo in waiting or (lost and repo not in looks and self._matches(repo))
        }
        state = {**left, **{repo: look.known for repo, look in looks.items() if look.known is not None}}
        return Listing(
            tuple(key for look in looks.values() for key in look.keys),
            _to_cursor(state, turns[-1] if turns else turn),
            tuple(skip for look in everything for skip in look.skipped),
        )

    def revision(self, key: ModelKey) -> str:
        """The whole SHA of the version's commit: of a tag, the one it names now."""
        return self._commit(key, Budget(_LOOK_SECONDS))

    def fetch(self, key: ModelKey) -> Path:
        """A folder of the cache with the commit's files, each verified by its digest.

        While the Hub does not answer, a commit that was fetched before is as good: it can't have changed.
        """
        budget = Budget(_LOOK_SECONDS)
        try:
            commit = self._commit(key, budget)
            snapshot = self._reader.snapshot(key.name, commit, budget)
        except RegistryUnavailableError:
            kept = list(self._cache.glob(f"{path_segment(str(key))}*")) if _HEX.fullmatch(key.version) else []
            if len(kept) != 1:
                raise
            return kept[0]
        if snapshot.fault:
            raise UserError(f"model {key}: {snapshot.fault}")

        def get(path: str, target: Path) -> None:
            seen = snapshot.files[path]
            if link_copy(self._cache, path_segment(f"{key.name}@"), path, seen.size, seen.identity, target):
                return

            def source(start: int) -> AbstractContextManager[tuple[int, Iterator[bytes]]]:
                return self._client.open(key.name, commit, path, start)

            part = target.with_name(f".{path.rpartition('/')[2]}.part")
            download(source, seen.size, seen.identity, part, target, f"model {key}: {path}")

        return copy_version(self._cache, ModelKey(key.name, commit), snapshot.files, get)

    def aliases(self, name: str) -> Mapping[str, str]:
        """Alias -> version, from the folder of notes. Raises UserError for a model that isn't there."""
        found = self._labels.aliases(name)
        if not found:  # then either it has none, or there is no such model
            self._refs(name, f"model {name}", Budget(_LOOK_SECONDS))
        return found

    def move_alias(self, name: str, alias: str, version: str, expected: str | None) -> None:
        """Point the alias to a version if it is at `expected`, in the folder of notes."""
        self._labels.move_alias(name, alias, version, expected)

    def annotate(self, key: ModelKey, notes: Mapping[str, str]) -> None:
        """Leave notes on a version, in the folder of notes."""
        self.revision(key)
        self._labels.annotate(key, notes)

    def _exists(self, key: ModelKey) -> bool:
        try:
            self.revision(key)
        except VersionNotThereError:
            return False
        return True

    def _matches(self, repo: str) -> bool:
        return any(fnmatchcase(repo, pattern) for pattern in self._patterns)

    def _stands_still(self, known: _Known | None, sha: str) -> bool:
        # The listing gives the head of the default branch only.
        return bool(known and known.head and self._branch == "main" and sha.startswith(known.head))

    def _members(self, budget: Budget) -> tuple[dict[str, str], list[_Look]]:
        """The organizations' models (repository -> head), and what stood in the way."""
        heads: dict[str, str] = {}
        failed: list[_Look] = []
        for organization in dict.fromkeys(pattern.partition("/")[0] for pattern in self._patterns):
            try:
                for model in self._reader.models_of(organization, budget):
                    if not self._matches(model.id):
                        continue
                    if not _is_name(model.id):
                        reason = "its name can be no model's; expected letters, digits and ._-"
                    elif "safetensors" not in model.tags:
                        reason = "the Hub knows of no safetensors in it; convert its weights"
                    else:
                        heads[model.id] = model.sha
                        continue
                    failed.append(_Look(skipped=(Skipped(model.id, reason),)))
            except TokenRefusedError:
                raise
            except RegistryUnavailableError as error:
                failed.append(_Look(skipped=(Skipped(organization, str(error)),), failure=error))
            except UserError as error:
                failed.append(_Look(skipped=(Skipped(organization, str(error)),)))
        return heads, failed

    def _look(self, repo: str, known: _Known | None, budget: Budget) -> _Look:
        try:
            return self._look_at(repo, known or _Known(), budget)
        except TokenRefusedError:
            raise
        except RegistryUnavailableError as error:
            return _Look(skipped=(Skipped(repo, str(error)),), known=known, failure=error)
        except UserError as error:
            return _Look(skipped=(Skipped(repo, str(error)),))

    def _look_at(self, repo: str, known: _Known, budget: Budget) -> _Look:
        refs = self._reader.refs(repo, budget)
        skipped: list[Skipped] = []
        late: list[RegistryUnavailableError] = []
        new: list[tuple[ModelKey, Snapshot]] = []
        named: set[str] = set()
        marks: set[str] = set()
        for tag in refs.tags:
            try:
                key = ModelKey.parse(f"{repo}@{tag.name}")
            except UserError as error:
                skipped.append(Skipped(f"{repo}, tag {tag.name}", str(error)))
                continue
            named.add(tag.target)
            try:
                if _mark(tag) not in known.tags:
                    new.append((key, self._reader.snapshot(repo, tag.target, budget)))
                marks.add(_mark(tag))
            except RegistryUnavailableError as error:
                late.append(error)  # the other tags count; this one is new at the next look, too

        state = _Known(known.head, known.files, frozenset(marks))
        head = next((branch.target for branch in refs.branches if branch.name == self._branch), None)
        if head is None:
            skipped.append(Skipped(repo, f"it has no branch {self._branch!r}; only its tags are looked at"))
        # A tag that is gone may have been what named the head.
        elif not known.head or not head.startswith(known.head) or known.tags - {_mark(t) for t in refs.tags}:
            try:
                snapshot = self._reader.snapshot(repo, head, budget)
            except RegistryUnavailableError as error:
                late.append(error)
            else:
                unchanged = known.head and not head.startswith(known.head) and snapshot.digest == known.files
                if head not in named and not unchanged:
                    new.append((ModelKey(repo, _short(head, refs.tags)), snapshot))
                # Without a head in the state, one that is no model is looked at, and told, again.
                state = _Known("" if snapshot.fault else head[:_SHORT], snapshot.digest, state.tags)

        skipped += (Skipped(str(key), snapshot.fault) for key, snapshot in new if snapshot.fault)
        skipped += (Skipped(repo, str(error)) for error in late[:1])
        good = [(key, snapshot) for key, snapshot in new if not snapshot.fault]
        if any(snapshot.gated for _, snapshot in good):
            self._reader.check_access(repo, budget)
        return _Look(tuple(key for key, _ in good), tuple(skipped), state)

    def _commit(self, key: ModelKey, budget: Budget) -> str:
        """The whole SHA that a version names.

        Raises VersionNotThereError for one that isn't there or isn't tracked.
        """
        repo = key.name
        refs = self._refs(repo, f"model {key}", budget)
        for tag in refs.tags:
            if tag.name == key.version:
                return tag.target
        if _HEX.fullmatch(key.version):
            near = {ref.target for ref in (*refs.branches, *refs.tags) if ref.target.startswith(key.version)}
            whole = True
            if not near:
                near, whole = self._reader.commits(repo, self._branch, key.version, budget)
            if len(near) > 1:
                raise UserError(
                    f"model {key}: {len(near)} commits start with {key.version}; write more digits"
                )
            if near:
                return near.pop()
            if not whole:
                raise UserError(
                    f"model {key}: {repo} has no such tag, and none of the youngest commits of branch "
                    f"{self._branch!r} starts so; an older one needs a tag"
                )
        there = [f"{repo}@{tag.name}" for tag in refs.tags[-5:]]
        there += [f"{repo}@{ref.target[:_SHORT]}" for ref in refs.branches if ref.name == self._branch]
        raise VersionNotThereError(
            f"model {key}: {repo} has no such tag, and branch {self._branch!r} no such commit (removed, or "
            f"force-pushed?); there are, among others: {', '.join(there) or 'none'}"
        )

    def _refs(self, repo: str, what: str, budget: Budget) -> Refs:
        """The refs of a tracked repository.

        Raises UnknownModelError, naming the closest, for another one; UserError where it may be private.
        """
        tracked = repo in self._repos or self._matches(repo)
        kind: type[UserError] = UnknownModelError
        try:
            if tracked:
                return self._reader.refs(repo, budget)
        except NotThereError as error:
            kind = UnknownModelError if error.told else UserError
        heads, _ = self._members(budget)
        close = difflib.get_close_matches(repo, {*self._repos, *heads} - {repo}, n=3, cutoff=0.4)
        others = f" (closest: {', '.join(close)})" if close else ""
        hidden = ", or private and HF_TOKEN is missing or has no access" if tracked else ""
        raise kind(f"{what}: not in {self.root}{hidden}{others}; check the name, or EVAL_MODELS")


def _is_name(repo: str) -> bool:
    try:
        return ModelKey.parse(f"{repo}@x").name.count("/") <= 1
    except UserError:
        return False


def _checked(repo: str) -> str:
    if not _is_name(repo):
        raise UserError(f"EVAL_MODELS: {repo!r} is no repository of a Hub; write it like 'org/model'")
    return repo


def _checked_pattern(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+(/[^/]+)?", name):
        raise UserError(f"EVAL_MODELS: {name!r} is no organization; write it like 'org' or 'org/pattern*'")
    return name


def _short(commit: str, tags: Sequence[Ref]) -> str:
    """The fewest digits of a commit, 12 or more, that are no tag's name."""
    taken = {tag.name for tag in tags}
    return next(commit[:n] for n in range(_SHORT, 41) if commit[:n] not in taken or n == 40)


def _mark(tag: Ref) -> str:
    return hashlib.sha256(f"{tag.name}\0{tag.target}".encode()).hexdigest()[:8]


def _to_cursor(known: Mapping[str, _Known], turn: str) -> str:
    """JSON of about 80 bytes a repository and 8 a tag; what is no longer there is no longer in it."""
    repos = {
        repo: [state.head, state.files, "".join(sorted(state.tags))] for repo, state in sorted(known.items())
    }
    return json.dumps({"turn": turn, "repos": repos}, separators=(",", ":"))


def _from_cursor(text: str) -> tuple[dict[str, _Known], str]:
    try:
        value = json.loads(text)
        known = {
            str(repo): _Known(head, files, frozenset(tags[at : at + 8] for at in range(0, len(tags), 8)))
            for repo, (head, files, tags) in value["repos"].items()
        }
        return known, str(value["turn"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}, ""
