"""The server of these tests answers huggingface_hub's own client as the real Hub does."""

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from tests.resources.registries.hub.server import Hub, Repo, git_id


def test_huggingface_hub_reads_what_the_registry_reads(
    hub: Hub, repo: Repo, files: dict[str, bytes], tmp_path: Path
) -> None:
    """The registry's requests are tested against this server: if it is unlike the Hub, so are they."""
    first = repo.head
    head = repo.commit({"config.json": b"{}"})
    repo.tags["v1"] = first
    api = HfApi(endpoint=hub.url, token=False)

    refs = api.list_repo_refs("org/tiny")
    assert [(ref.name, ref.target_commit) for ref in (*refs.branches, *refs.tags)] == [
        ("main", head),
        ("v1", first),
    ]
    assert [commit.commit_id for commit in api.list_repo_commits("org/tiny")] == [head, first]
    info = api.model_info("org/tiny", revision=first, files_metadata=True)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    assert info.sha == first
    assert siblings["config.json"].blob_id == git_id(files["config.json"])
    weights = files["model.safetensors"]
    lfs = siblings["model.safetensors"].lfs
    assert lfs is not None
    assert (lfs.size, lfs.sha256) == (len(weights), hashlib.sha256(weights).hexdigest())
    for name in ("config.json", "model.safetensors"):
        path = api.hf_hub_download("org/tiny", name, revision=first, local_dir=tmp_path)
        assert Path(path).read_bytes() == files[name]


def test_huggingface_hub_lists_an_organization_over_pages(hub: Hub, files: dict[str, bytes]) -> None:
    hub.page = 2
    for name in ("org/a", "org/b", "org/c"):
        hub.repo(name, files)
    api = HfApi(endpoint=hub.url, token=False)
    models = api.list_models(author="org", pipeline_tag="text-generation", expand=["sha", "tags"])
    assert [(model.id, model.sha) for model in models] == [
        (name, repo.head) for name, repo in hub.repos.items()
    ]


def test_huggingface_hub_is_refused_as_by_the_hub(hub: Hub, repo: Repo, token: str) -> None:
    api = HfApi(endpoint=hub.url, token=token)
    api.auth_check("org/tiny")
    repo.gated = True
    with pytest.raises(GatedRepoError):
        api.auth_check("org/tiny")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/tiny", revision="0" * 40)
    with pytest.raises(RepositoryNotFoundError):
        api.list_repo_refs("org/none")
