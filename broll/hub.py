"""Files from the Hugging Face hub: listed, fetched side by side, taken up where they stopped, checked byte for byte.

    listing      the files of one commit, each with its size and its digest: sha256 for large ones, git's sha1 for small
    fetch        into a folder; what was half fetched lies in `.fetching/DIGEST-HASH` and is gone on with

Everything goes through huggingface_hub, so that HF_ENDPOINT (a mirror), HF_TOKEN, HF_HUB_OFFLINE and the proxies mean
what they mean elsewhere. Its own downloads begin anew in every process; so only its request, with a Range, is used.
Nothing that the hub says is believed: a path must stay in the folder, and bytes must have the digest that was listed.
"""
# ruff: noqa: PLC0415  huggingface_hub takes half a second; names answer at once

import concurrent.futures
import hashlib
import os
import shutil
import threading
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from broll.errors import BadDownload, BrollError, HubNotFound, HubRefused, HubUnreachable, OutputError

FETCHING = ".fetching"
WORKERS = 4  # files at a time
TRIES = 2  # without a byte in between; each is several of huggingface_hub's
CHUNK = 4 * 1024 * 1024


@dataclass(frozen=True)
class Remote:
    """One file of one commit."""

    repository: str
    revision: str  # the commit
    path: str
    size: int
    sha256: str | None  # of large files
    blob: str  # git's name of it: sha1 over a header and the bytes

    @property
    def digest(self) -> str:
        return self.sha256 or self.blob


@dataclass(frozen=True)
class Listing:
    files: tuple[Remote, ...]
    license: str | None  # None: the hub does not say


@dataclass(frozen=True)
class Progress:
    stage: str
    done: int  # bytes
    total: int


SAID: tuple[tuple[str, type[BrollError], str], ...] = (  # the library's error, ours, and its words
    (
        "OfflineModeIsEnabled",
        HubUnreachable,
        "HF_HUB_OFFLINE is set, so {place} is not asked for {repository}; what is on this machine works without it",
    ),
    (
        "GatedRepoError",
        HubRefused,
        "{repository} is gated: accept its terms at {place}/{repository}, and set HF_TOKEN to a token of yours",
    ),
    (
        "RepositoryNotFoundError",
        HubNotFound,
        "there is no repository {repository} at {place}, or it is private: then set HF_TOKEN to a token for it",
    ),
    ("RevisionNotFoundError", HubNotFound, "{repository} has no revision {revision}"),
    ("EntryNotFoundError", HubNotFound, "{repository} lists a file at {revision} that {place} does not have"),
    ("HFValidationError", HubNotFound, "{repository} is no name of a repository: OWNER/NAME"),
)


class _StoppedError(Exception):
    """The one who waited has gone."""


class _Count:
    """Bytes, added to by several threads; and whether they shall stop."""

    def __init__(self) -> None:
        self.value, self.stopped, self._lock = 0, False, threading.Lock()

    def add(self, number: int) -> None:
        with self._lock:
            self.value += number


class _Share:
    """One file's part in a count."""

    def __init__(self, count: _Count) -> None:
        self._count, self._value = count, 0

    def add(self, number: int) -> None:
        self._value += number
        self._count.add(number)
        self.look()

    def look(self) -> None:
        """Go no further if nobody waits any more."""
        if self._count.stopped:
            raise _StoppedError

    def begin_anew(self) -> None:
        self._count.add(-self._value)
        self._value = 0

    def bar(self) -> Any:
        """What huggingface_hub takes for a bar of tqdm's: it is told of every piece, and of what was there before."""
        add = self.add

        class Bar:
            def __init__(self, *, initial: int = 0, **_: object) -> None:
                add(initial)

            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None: ...

            def update(self, number: int) -> None:
                add(number)

        return Bar


# --- what is there ----------------------------------------------------------------------------------------


def listing(repository: str, revision: str) -> Listing:
    """Every file of a repository at a branch, a tag or a commit."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        api = HfApi()
        about = api.model_info(repository, revision=revision)
        commit = about.sha or revision
        files = tuple(
            Remote(repository, commit, e.path, e.size, e.lfs.sha256 if e.lfs else None, e.blob_id)
            for e in api.list_repo_tree(repository, recursive=True, revision=commit)
            if isinstance(e, RepoFile)
        )
    except (
        Exception
    ) as error:  # the library's, its HTTP library's, and whatever a strange answer makes of them
        raise translated(error, repository, revision) from error
    for file in files:
        check_path(file.path, repository)
    said = [tag.removeprefix("license:") for tag in about.tags or () if tag.startswith("license:")]
    return Listing(files, said[0] if said else None)


def check_path(path: str, repository: str) -> None:
    parts = path.split("/")
    odd = any(part in ("", ".", "..", FETCHING) or part != part.strip() for part in parts)
    if odd or PurePosixPath(path).is_absolute() or not path.isprintable() or set("\\:") & set(path):
        raise BadDownload(
            f"{repository} lists {path!r}, which is no path inside a folder: nothing was fetched"
        )


def translated(error: Exception, repository: str, revision: str = "main") -> BrollError:
    """What a user can do about it."""
    from huggingface_hub import constants, errors

    place = constants.ENDPOINT
    for name, kind, text in SAID:
        if isinstance(error, getattr(errors, name)):
            return kind(text.format(place=place, repository=repository, revision=revision))
    if isinstance(error, errors.HfHubHTTPError):
        return _answered(error.response.status_code, repository, place)
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return OutputError(f"cannot write {error.filename or 'what is fetched'}: {error.strerror}")
    reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    return HubUnreachable(f"{place} does not answer: {reason}; the same command goes on where it stopped")


def _answered(status: int, repository: str, place: str) -> BrollError:
    if status in (401, 403):
        return HubRefused(
            f"{place} refuses {repository} ({status}): set HF_TOKEN to a token that may read it"
        )
    return HubUnreachable(f"{place} answered {status} for {repository}; try again later")


# --- into a folder ----------------------------------------------------------------------------------------


def fetch(files: Mapping[str, Remote], folder: Path) -> Iterator[Progress]:
    """Make `folder` hold these files and no other, by their paths in it; what is there already is checked."""
    total = sum(file.size for file in files.values())
    _tidy(files, folder)
    missing = yield from _missing(files, folder, total)
    partial = {path: folder / FETCHING / _partial_name(path, file) for path, file in missing.items()}
    here = sum(min(file.size, _size(partial[path])) for path, file in missing.items())
    check_space(sum(file.size for file in missing.values()) - here, folder)
    count = _Count()
    count.add(total - sum(file.size for file in missing.values()))
    executor = concurrent.futures.ThreadPoolExecutor(WORKERS)
    try:
        largest = sorted(missing, key=lambda path: -missing[path].size)
        running = {
            executor.submit(_fetch_one, missing[path], partial[path], folder / path, _Share(count))
            for path in largest
        }
        while running:
            done, running = concurrent.futures.wait(running, 0.5, concurrent.futures.FIRST_COMPLETED)
            for future in done:
                future.result()
            yield Progress("fetching", count.value, total)
    finally:
        count.stopped = True
        executor.shutdown(wait=False, cancel_futures=True)
    shutil.rmtree(folder / FETCHING, ignore_errors=True)


def _partial_name(path: str, file: Remote) -> str:
    """By digest, so that another commit's half is not taken up; by path, because two files may be the same."""
    return f"{file.digest}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def _tidy(files: Mapping[str, Remote], folder: Path) -> None:
    """Remove what an earlier run for other files left."""
    partial = {_partial_name(path, file) for path, file in files.items()}
    for place in folder.rglob("*"):
        path = place.relative_to(folder)
        known = path.name in partial if path.parts[0] == FETCHING else path.as_posix() in files
        if place.is_symlink() or (not known and not place.is_dir()):
            place.unlink()


def _missing(
    files: Mapping[str, Remote], folder: Path, total: int
) -> Generator[Progress, None, dict[str, Remote]]:
    """Read what an earlier run fetched; what is not as it should be is removed. Returns the files to fetch."""
    missing, done = {}, 0
    for path, file in files.items():
        place = folder / path
        if not place.is_file():
            missing[path] = file
            continue
        yield Progress("checking", done, total)
        done += file.size
        if place.stat().st_size != file.size or digest(place, file) != file.digest:
            place.unlink()
            missing[path] = file
    return missing


def check_space(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{needed / 1e9:.1f} GB are to be fetched, and {folder} has room for {free / 1e9:.1f} GB: make room, "
            "or set BROLL_MODELS to a folder on a larger disk"
        )


def _fetch_one(file: Remote, partial: Path, place: Path, share: _Share) -> None:
    for folder in (partial.parent, place.parent):
        folder.mkdir(parents=True, exist_ok=True)
    _download(file, partial, share)
    found = digest(partial, file)
    if found != file.digest:
        partial.unlink()
        raise BadDownload(
            f"{file.path} of {file.repository} arrived with the digest {found[:12]}..., but {file.digest[:12]}... is "
            "listed: it is not kept; run the same command again, or without a mirror"
        )
    os.replace(partial, place)


def _download(file: Remote, partial: Path, share: _Share) -> None:
    """All its bytes; a lost connection is tried again, as long as something arrives in between."""
    from huggingface_hub import errors

    tries, last = TRIES, -1
    while _size(partial) != file.size or not partial.exists():
        share.look()
        here = _size(partial)
        tries, last = TRIES if here > last else tries - 1, here
        try:
            _request(file, partial, here, share)
        except (_StoppedError, BrollError):
            raise
        except Exception as error:
            known = translated(error, file.repository, file.revision)
            lost = isinstance(known, HubUnreachable) and not isinstance(error, errors.OfflineModeIsEnabled)
            if not lost or isinstance(error, errors.HfHubHTTPError) or tries <= 1:
                raise known from error
        if _size(partial) > file.size:
            partial.unlink()
            raise BadDownload(
                f"{file.path} of {file.repository} is longer than the {file.size} bytes that are listed"
            )
        share.begin_anew()
    share.add(file.size)


def _request(file: Remote, partial: Path, here: int, share: _Share) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # it is documented there

    url = hf_hub_url(file.repository, file.path, revision=file.revision)
    with partial.open("ab") as opened:
        http_get(
            url, opened, resume_size=here, headers=build_hf_headers(), expected_size=file.size,
            tqdm_class=share.bar(),
        )  # fmt: skip


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


# --- digests ----------------------------------------------------------------------------------------------


def digest(path: Path, file: Remote) -> str:
    """Of the same kind as the hub's."""
    if file.sha256 is not None:
        return sha256(path)
    header = f"blob {path.stat().st_size}\0".encode()
    return _hash(path, hashlib.sha1(header, usedforsecurity=False))


def sha256(path: Path) -> str:
    return _hash(path, hashlib.sha256())


def _hash(path: Path, made: Any) -> str:
    with path.open("rb") as opened:
        while piece := opened.read(CHUNK):
            made.update(piece)
    return str(made.hexdigest())
