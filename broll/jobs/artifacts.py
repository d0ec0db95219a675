"""What jobs make and need (clips, thumbnails, previews, snapshots, pictures), in a folder or in S3-compatible storage.

    artifacts = Artifacts.open("/var/lib/broll/artifacts")     or "s3://bucket/prefix"
    artifacts.put("job_01k8/clip.mp4", data, content_type="video/mp4")
    for piece in artifacts.read("job_01k8/clip.mp4", 0, 1000): ...

obstore does the work, and the same tests hold both. A path is made of ids, and is checked again here. An object is
whole or absent: a file is written beside its place and renamed into it (obstore), S3 shows an object once its upload is
complete. A `put` that has returned survives a power cut: obstore does not sync, so a folder's file and its directories
are synced here. Links below the folder are refused, because obstore would follow them out of it.

Requests to S3 that fail in passing (5xx, no connection, broken off) are made three times in all, by obstore. Objects
above 8 MiB go up in parts; parts of an upload that was killed stay, unseen, until a lifecycle rule of the bucket
removes them. A folder keeps no content types; whoever serves the object knows them.

Left out: a store that was opened before a fork cannot be used after it, because its threads stay behind. Open one in
each process.
"""

import errno
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from broll.errors import ArtifactMissing, BadOption, BadRequest, StorageError

PATH = re.compile(r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_.-]{1,200}(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_.-]{1,200})*")
MAX_PATH = 800  # S3 takes 1024, prefix included
STAGED = re.compile(r".*#[0-9]+")  # obstore's name for a file that is being written
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

PIECE = 256 * 1024
PART = 8 * 1024 * 1024
TRIES = 3

# A request as a whole may take long, because a slow viewer holds it open; silence may not.
PATIENCE = {"connect_timeout": "5s", "read_timeout": "60s", "timeout": "6h"}
CLIENT = {*PATIENCE, "allow_http", "allow_invalid_certificates", "root_certificate", "proxy_url"}
ENDPOINTS = {"endpoint", "endpoint_url", "aws_endpoint", "aws_endpoint_url", "aws_endpoint_url_s3"}
# What obstore raises: its own errors, and Python's where a file system, a name or what a store can do is the matter.
FAILURES = (BaseError, OSError, ValueError, NotImplementedError)

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
NOT_A_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}


def check_path(path: str) -> str:
    if len(path) > MAX_PATH or not PATH.fullmatch(path):
        raise BadRequest(
            f"{path[:100]!r} is no artifact; names are letters, digits, '_', '.' and '-', joined by '/'"
        )
    return path


def os_error(failure: Exception) -> int | None:
    """The number the operating system gave, also where obstore tells it in words."""
    if isinstance(failure, OSError) and failure.errno:
        return failure.errno
    said = re.search(r"\(os error (\d+)\)", str(failure).partition("\n")[0])
    return int(said[1]) if said else None


def reason(failure: Exception, where: str) -> str:
    """One line of what obstore tells in fifty; answers of a server can hold key ids, so they stay out."""
    text, number = str(failure), os_error(failure)
    if number in NO_SPACE or "status code: 507" in text:
        return f"no space left on {where}"
    if number:
        return f"{os.strerror(number).lower()} on {where}"
    if "<Code>NoSuchBucket<" in text:
        return f"there is no bucket {where}"
    if status := re.search(r"status code: (\d+)[ \w]*", text):
        hint = "; are the credentials right?" if status[1] in {"401", "403"} else ""
        return f"{where} answered {status[0].removeprefix('status code: ')}{hint}"
    if "HTTP error" in text:
        return f"{where} cannot be reached"
    return f"{where}: {text.partition(chr(10))[0][:200]}"


@contextmanager
def told(deed: str, path: str, where: str, *, finds: bool) -> Iterator[None]:
    """Errors of obstore as ours. `finds`: the object should be there, so its absence is ArtifactMissing."""
    try:
        yield
    except FAILURES as failure:
        lost = isinstance(failure, FileNotFoundError) or os_error(failure) in NOT_A_FILE
        if finds and lost and "<Code>NoSuchBucket<" not in str(failure):
            raise ArtifactMissing(f"there is no artifact {path}") from failure
        raise StorageError(f"cannot {deed} {path}: {reason(failure, where)}") from failure


@dataclass(frozen=True)
class Folder:
    """What obstore leaves to its caller where files are concerned."""

    root: Path

    def must_be_there(self) -> None:
        """A disk that is not mounted is not an empty one: nothing may be written in its place, nor taken to be gone."""
        if not self.root.is_dir():
            raise StorageError(f"the folder {self.root} is gone; is its disk mounted?")

    def refuse_links(self, path: str) -> None:
        if os.path.realpath(self.root / path) != str(self.root / path):
            raise StorageError(f"{path} leads over a link in {self.root}; links are not followed")

    def sync(self, path: str) -> None:
        """The file and each directory up to the root, because some may be new."""
        file = self.root / path
        for place in (file, *list(file.parents)[: path.count("/") + 1]):
            with suppress(FileNotFoundError):  # deleted in the meantime
                handle = os.open(place, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)

    def files(self, prefix: str) -> Iterator[str]:
        """Everything that is no link, half-written files too."""

        def complain(failure: OSError) -> None:
            if failure.errno not in NOT_A_FILE:
                raise failure

        for folder, _, names in os.walk(self.root / prefix, onerror=complain):
            for name in names:
                file = Path(folder, name)
                if not file.is_symlink():
                    yield file.relative_to(self.root).as_posix()

    def sweep(self, prefix: str) -> None:
        """Remove what writers left when they were killed."""
        for path in self.files(prefix):
            if STAGED.fullmatch(path):
                (self.root / path).unlink(missing_ok=True)


def open_folder(where: str, options: Mapping[str, str]) -> tuple[LocalStore, Folder]:
    if options:
        raise BadOption(f"a folder takes no storage options; got {', '.join(sorted(options))}")
    root = Path(where).expanduser().resolve()
    with told("open", "the folder", str(root), finds=False):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return LocalStore(root, automatic_cleanup=True), Folder(root)


def split_url(where: str) -> tuple[str, str]:
    scheme, _, rest = where.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    if scheme != "s3":
        raise BadOption(f"{scheme}:// is no storage; it is a folder or s3://bucket/prefix")
    if not BUCKET.fullmatch(bucket) or (prefix and not PATH.fullmatch(prefix)):
        raise BadOption("after s3:// come a bucket and a prefix: letters, digits, '.', '-', joined by '/'")
    return bucket, prefix


def check_options(options: Mapping[str, str]) -> None:
    """What would panic or puzzle later. Values can be secrets and are not repeated."""
    for name, value in options.items():
        if not value.isprintable() and name != "root_certificate":
            raise BadOption(f"{name} has a line break or another character that cannot be printed")
        if name in ENDPOINTS and not re.fullmatch(r"https?://[^\s/]+(?:/\S*)?", value):
            raise BadOption(f"{name} must be a URL such as https://s3.example.com")
    unsafe = any(options[name].startswith("http://") for name in ENDPOINTS & options.keys())
    if unsafe and options.get("allow_http", options.get("aws_allow_http", "false")).lower() != "true":
        raise BadOption("the endpoint is http://, which encrypts nothing; to use it, set allow_http to true")


def open_s3(where: str, options: Mapping[str, str]) -> S3Store:
    bucket, prefix = split_url(where)
    given = {name.lower(): value.strip() for name, value in options.items()}
    around = {name.lower(): value for name, value in os.environ.items() if name.startswith("AWS_")}
    if ENDPOINTS & given.keys():
        around = {name: value for name, value in around.items() if name not in ENDPOINTS}
    check_options(around | given)
    # Client options replace the environment's as a whole, so its one must be handed on.
    http = {"allow_http": around["aws_allow_http"]} if "aws_allow_http" in around else {}
    client: Any = PATIENCE | http | {name: value for name, value in given.items() if name in CLIENT}
    config: Any = {name: value for name, value in given.items() if name not in CLIENT}
    try:
        return S3Store(
            bucket,
            prefix=prefix or None,
            config=config,
            client_options=client,
            retry_config={"max_retries": TRIES - 1, "retry_timeout": timedelta(minutes=2)},
        )
    except FAILURES as failure:
        raise BadOption(f"storage options: {str(failure).partition(chr(10))[0]}") from failure


class Artifacts:
    """Objects by path. May be used from several threads at once."""

    def __init__(self, where: str, store: LocalStore | S3Store, folder: Folder | None) -> None:
        self.where = where
        self._store = store
        self._folder = folder

    @classmethod
    def open(cls, where: str, *, options: Mapping[str, str] | None = None) -> "Artifacts":
        """`where` is a folder, made if absent, or s3://bucket/prefix.

        `options` are obstore's of S3 (endpoint, region, access_key_id, secret_access_key, ...) and of its client
        (allow_http, root_certificate, ...); what is absent comes from AWS_* variables.
        """
        if "://" in where:
            return cls(where, open_s3(where, options or {}), None)
        store, folder = open_folder(where, options or {})
        return cls(str(folder.root), store, folder)

    def _check(self, path: str) -> None:
        check_path(path)
        if self._folder:
            self._folder.must_be_there()
            self._folder.refuse_links(path)

    def put(self, path: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Whole or not at all; what was there before is replaced."""
        self._check(path)
        with told("write", path, self.where, finds=False):
            if self._folder:
                self._put_file(path, data)
                self._folder.sync(path)
            else:
                kind: Any = {"Content-Type": content_type}
                self._store.put(path, data, attributes=kind, chunk_size=PART, max_concurrency=4)

    def _put_file(self, path: str, data: bytes) -> None:
        for attempt in range(TRIES):
            try:
                self._store.put(path, data, use_multipart=False)
            except FAILURES as failure:
                # A deletion beside us may clear away the directory just made: 67 in 13,792 puts of four threads.
                if os_error(failure) != errno.ENOENT or attempt == TRIES - 1:
                    raise
                time.sleep(0.01 * 2**attempt)
            else:
                return

    def get(self, path: str) -> bytes:
        self._check(path)
        with told("read", path, self.where, finds=True):
            return bytes(self._store.get(path).bytes())

    def size(self, path: str) -> int:
        self._check(path)
        with told("read", path, self.where, finds=True):
            return self._store.head(path)["size"]

    def exists(self, path: str) -> bool:
        try:
            self.size(path)
        except ArtifactMissing:
            return False
        return True

    def read(self, path: str, start: int, end: int) -> Iterator[bytes]:
        """Bytes `start` to `end`, without `end`, in pieces; fails here, not at the first piece, if they are not there.

        The pieces are of one version of the object, even if it is replaced meanwhile.
        """
        if not 0 <= start < end:
            size = self.size(path)
            if not 0 <= start == end <= size:
                raise StorageError(f"{path} has {size} bytes; {start} to {end} is not a part of it")
            return iter(())
        self._check(path)
        with told("read", path, self.where, finds=True):
            found = self._store.get(path, options={"range": (start, end)})
        if found.range != (start, end):
            raise StorageError(f"{path} has {found.meta['size']} bytes; {start} to {end} is not a part of it")
        return self._pieces(path, iter(found.stream(min_chunk_size=PIECE)))

    def _pieces(self, path: str, stream: Iterator[bytes]) -> Iterator[bytes]:
        with told("read", path, self.where, finds=False):
            for some in stream:
                for at in range(0, len(some), PIECE):
                    yield some[at : at + PIECE]

    def delete(self, path: str) -> None:
        """Also fine if there is no such object: S3 does not tell."""
        self._check(path)
        with suppress(ArtifactMissing), told("delete", path, self.where, finds=True):
            self._store.delete(path)

    def list_below(self, prefix: str) -> list[str]:
        """Sorted. `job_1` is above job_1/clip.mp4, not above job_10/clip.mp4; an empty prefix is above everything."""
        if prefix:
            self._check(prefix)
        with told("list", prefix or "everything", self.where, finds=False):
            if self._folder:
                found = list(self._folder.files(prefix))
            else:
                found = [str(each["path"]) for each in self._store.list(prefix or None).collect()]
        return sorted(path for path in found if PATH.fullmatch(path))

    def delete_below(self, prefix: str) -> int:
        """How many there were. Nothing may be written below `prefix` meanwhile."""
        paths = self.list_below(check_path(prefix))
        with told("delete", prefix, self.where, finds=False):
            if self._folder:
                self._folder.sweep(prefix)
        if not paths:
            return 0
        try:
            with told("delete", prefix, self.where, finds=True):
                self._store.delete(paths)
        except ArtifactMissing:  # another was faster with one of them, and the rest was skipped
            for path in paths:
                self.delete(path)
        return len(paths)

    def check(self) -> None:
        """Write, read and delete something small, or StorageError."""
        path, data = f"probe/{uuid.uuid4().hex}", os.urandom(16)
        self.put(path, data)
        try:
            if self.get(path) != data:
                raise StorageError(f"{self.where} gave back other bytes than were written")
        except ArtifactMissing as failure:
            raise StorageError(f"{self.where} lost what was just written") from failure
        finally:
            self.delete(path)
