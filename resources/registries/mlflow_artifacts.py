"""The files of a version that is registered in MLflow: where they lie and how each is fetched."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from resources.errors import UserError
from resources.registries.files import Seen, is_read, model_files, seen_of
from resources.storage import filesystem_of

_OBJECT_STORES = ("s3", "gs", "gcs", "abfs", "abfss", "memory")
_MOST_FILES = 10_000


@dataclass(frozen=True, slots=True)
class Artifacts:
    """What lies at a version's source: relative path -> what its listing says, and how a file is fetched."""

    files: Mapping[str, Seen]
    get: Callable[[str, Path], None]

    def hugging_face(self, what: str) -> "Artifacts":
        """The Hugging Face folder among them, as it must lie in one folder to be loaded.

        That is the shallowest folder with ``config.json`` beside a safetensors file: the source itself, or
        ``model/`` of MLflow's transformers flavor, which keeps the tokenizer and other components apart
        (``components/<name>/``); their files are put beside the model's. Raises UserError, starting with
        `what`, where there is none.
        """
        folder = _hugging_face_folder(self.files, what)
        places = {path: path for path in self.files} if not folder else {}
        if folder:
            above = folder.rpartition("/")[0]
            components = f"{above}/components/" if above else "components/"
            for path in sorted(self.files):
                if path.startswith(f"{folder}/"):
                    places[path[len(folder) + 1 :]] = path
            for path in sorted(self.files):
                inside = path[len(components) :].partition("/")[2] if path.startswith(components) else ""
                if inside:
                    places.setdefault(inside, path)
        return Artifacts(
            {place: self.files[path] for place, path in places.items()},
            lambda place, target: self.get(places[place], target),
        )


def open_artifacts(uri: str, tracking_uri: str, what: str) -> Artifacts:
    """The files below a source.

    A local folder and an object store (through fsspec) are read where they are; anything else, above all
    what the MLflow server itself serves, through MLflow's client. Its listing has names and sizes only, so
    there a file's identity is the content of ``MLmodel``, which is another one whenever a model is logged.

    Raises UserError for a source that isn't there, and what MLflow's client raises.
    """
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file"):
        return _local(url2pathname(urlsplit(uri).path), what)
    if scheme in _OBJECT_STORES:
        return _stored(uri)
    return _served(uri, tracking_uri, what)


def _hugging_face_folder(files: Mapping[str, Seen], what: str) -> str:
    def folders(ending: str) -> set[str]:
        return {path.rpartition("/")[0] for path in files if f"/{path}".endswith(ending)}

    both = folders(".safetensors") & folders("/config.json")
    found = sorted(both, key=lambda folder: (folder.count("/") + bool(folder), folder))
    if not found:
        there = ", ".join(sorted(files)[:3]) or "nothing that a load can read"
        raise UserError(
            f"{what}: its artifacts hold no Hugging Face folder (config.json beside *.safetensors), but "
            f"{there}; log the folder that save_pretrained wrote, or use MLflow's transformers flavor"
        )
    return found[0]


def _local(folder: str, what: str) -> Artifacts:
    if not Path(folder).is_dir():
        raise UserError(
            f"{what}: its source {folder} is no folder of this machine; let the MLflow server serve "
            "artifacts (--serve-artifacts), or mount it"
        )
    paths = model_files(Path(folder), what)

    def get(relative: str, target: Path) -> None:
        with paths[relative].open("rb") as source, target.open("wb") as copy:
            while chunk := source.read(1 << 20):
                copy.write(chunk)

    files = {}
    for relative, path in paths.items():
        status = path.stat()
        files[relative] = Seen(status.st_size, str(status.st_mtime_ns))
    return Artifacts(files, get)


def _stored(uri: str) -> Artifacts:
    filesystem, base = filesystem_of(uri)
    base = base.rstrip("/")
    filesystem.invalidate_cache()
    listed = {path[len(base) + 1 :]: info for path, info in filesystem.find(base, detail=True).items()}
    files = {path: seen_of(info) for path, info in listed.items() if is_read(path)}
    return Artifacts(files, lambda path, target: filesystem.get_file(f"{base}/{path}", str(target)))


def _served(uri: str, tracking_uri: str, what: str) -> Artifacts:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository: Any = get_artifact_repository(uri, tracking_uri=tracking_uri, registry_uri=tracking_uri)

    def get(path: str, target: Path) -> None:
        with TemporaryDirectory(prefix=".", suffix=".tmp", dir=target.parent) as folder:
            Path(repository.download_artifacts(path, folder)).replace(target)

    sizes = _sizes(repository, what)
    description = ""
    if "MLmodel" in sizes:
        with TemporaryDirectory() as folder:
            target = Path(folder, "MLmodel")
            get("MLmodel", target)
            description = hashlib.sha256(target.read_bytes()).hexdigest()
    return Artifacts({path: Seen(size, description) for path, size in sizes.items()}, get)


def _sizes(repository: Any, what: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    folders: list[str | None] = [None]
    while folders:
        folder = folders.pop()
        for info in repository.list_artifacts(folder):
            path = str(info.path)
            # A listing that names itself or what is above would be walked for ever.
            if ".." in PurePosixPath(path).parts or not path.startswith(f"{folder}/" if folder else ""):
                raise UserError(f"{what}: its artifact {path!r} leaves its folder; register it anew")
            if not is_read(path):
                continue
            if info.is_dir:
                folders.append(path)
            else:
                sizes[path] = int(info.file_size or 0)
        if len(sizes) + len(folders) > _MOST_FILES:
            raise UserError(f"{what}: more than {_MOST_FILES:,} artifacts; register the model's folder alone")
    return sizes
