"""Where WebDataset tars come from: folders, files, brace patterns, lists with `::`, URLs and `pipe:` commands.

Patterns are expanded, and everything that is no file here is opened, by the `webdataset` package (extra
`[webdataset]`). Such a stream is first spooled to disk, because samples are then read in another order than theirs.
"""

import fcntl
import importlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import xxhash
from rich.filesize import decimal

from wv_ingest.errors import SourceError
from wv_ingest.tar_walk import TarWalk
from wv_ingest.wds_samples import Samples, refuse_other_files
from wv_shards import atomic_file, write_atomic
from wv_shards.atomic import temporary_path

INSTALL = "pip install 'wv-toolkit[webdataset]'"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_TAR_NAME = re.compile(r"[^\s'\"|&;<>()]+\.tar\b")
_CHUNK_BYTES = 1 << 20
_SAY_SECONDS = 10.0
_SAMPLES_TRIED = 20
"""Samples of a folder's first tar that are looked at before it is taken for WebDataset's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TarUrl:
    """One tar of a source."""

    url: str
    """As it was given, patterns expanded."""
    name: str
    """What row paths call it: as short an end of its path as is its own."""
    local: Path | None
    """The file, where it is one on this machine; None: it has to be spooled."""
    times: int = 1
    """How often it stands in the source; it is read once."""


def is_spec(text: str) -> bool:
    """Whether a source, as given at the command line, is a list of tars in `webdataset`'s way and no folder or list."""
    if os.path.exists(text):
        return os.path.isfile(text) and text.endswith(".tar")
    return "::" in text or _SCHEME.match(text) is not None or text.endswith((".tar", ".tar}")) or "{" in text


def holds_samples(folder: Path) -> bool:
    """Whether a folder's tars look like WebDataset's: some sample of the first has an image and a label member."""
    tars = tars_in(folder)
    if not tars:
        return False
    try:
        descriptor = os.open(tars[0], os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        for number, sample in enumerate(Samples(TarWalk(descriptor, os.fstat(descriptor).st_size))):
            if sample.image is not None and (sample.member(b"cls") or sample.member(b"json")):
                return True
            if number >= _SAMPLES_TRIED:
                break
    finally:
        os.close(descriptor)
    return False


def tars_in(folder: Path) -> list[Path]:
    """Tars directly in a folder, by name."""
    return sorted((path for path in folder.glob("*.tar") if path.is_file()), key=lambda path: os.fsencode(path.name))


def tar_urls(source: Path | str) -> list[TarUrl]:
    """The tars of a folder, or of a spec, in their order, each once.

    Raises:
        SourceError: none, no such file, the package `webdataset` is needed and missing.
    """
    if isinstance(source, Path) and source.is_dir():
        tars = tars_in(source)
        if not tars:
            raise SourceError(
                f"{source}: no *.tar in it; expected WebDataset tars, or a pattern like x-{{000..009}}.tar"
            )
        return [TarUrl(url=str(tar), name=tar.name, local=tar) for tar in tars]
    found = _expand(str(source))
    alike: dict[str, list[str]] = {}
    for url in found:
        path = _local(url)
        alike.setdefault(url if path is None else str(path.resolve()), []).append(url)
    urls = [same[0] for same in alike.values()]
    locals_ = [_local(url) for url in urls]
    for url, local in zip(urls, locals_, strict=True):
        if local is not None and not local.exists():
            raise SourceError(f"{url}: no such file; expected a tar, a pattern, or a URL that webdataset opens")
        if local is not None and local.is_dir():
            raise SourceError(f"{url}: a folder; give one folder of tars alone, or name the tars")
    return [
        TarUrl(url=url, name=name, local=local if local is not None and local.is_file() else None, times=len(same))
        for url, name, local, same in zip(urls, _names(urls, locals_), locals_, alike.values(), strict=True)
    ]


def _expand(spec: str) -> list[str]:
    if not ("::" in spec or "{" in spec or "$" in spec):
        return [spec]
    expand_urls = _webdataset("shardlists").expand_urls
    try:
        urls: list[str] = expand_urls(spec)
    except (ValueError, AssertionError) as error:
        raise SourceError(f"{spec}: not a list of tars that webdataset understands: {error}") from error
    if not all(urls):
        raise SourceError(f"{spec}: an empty name in the list; expected tars between '::'")
    return urls


def _local(url: str) -> Path | None:
    """The path that a URL without a scheme, or with `file:`, names."""
    scheme = urlparse(url).scheme if _SCHEME.match(url) else ""
    if scheme == "file":
        return Path(url2pathname(urlparse(url).path))
    return Path(url) if scheme == "" and url != "-" else None


def _names(urls: Sequence[str], locals_: Sequence[Path | None]) -> list[str]:
    """A name for each tar, no two alike: the last part of its path, and as many before it as it takes."""
    parts = []
    for url, local in zip(urls, locals_, strict=True):
        found = _TAR_NAME.findall(url) if local is None else [str(local)]
        parts.append([part for part in re.split(r"[/:]", found[-1]) if part] if found else [])
    depths = [1] * len(urls)
    while True:
        names = ["/".join(part[-depth:]) for part, depth in zip(parts, depths, strict=True)]
        taken: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            taken.setdefault(name, []).append(i)
        alike = [i for rows in taken.values() if len(rows) > 1 for i in rows]
        growing = [i for i in alike if depths[i] < len(parts[i])]
        if not growing:
            break
        for i in growing:
            depths[i] += 1
    for i in {*alike, *(i for i, name in enumerate(names) if not name)}:
        names[i] = f"{i:06d}-{names[i]}" if names[i] else f"{i:06d}.tar"
    return names


def spooled(urls: Sequence[TarUrl], directory: Path, say: Callable[[str], None]) -> tuple[list[Path], tuple[str, ...]]:
    """Files with the bytes of all tars, and warnings of those that broke off; streams are copied into `directory`.

    What an earlier run has spooled there is taken as it is.

    Args:
        urls: of the tars.
        directory: made if need be.
        say: called with a note for a person, now and then.

    Raises:
        SourceError: a stream can't be opened, gives nothing, or no tar.
        OSError: no space left.
    """
    streams = [url for url in urls if url.local is None]
    if not streams:
        return [url.local for url in urls if url.local is not None], ()
    with _owned(directory):
        spool = _Spool(directory, say)
        for number, url in enumerate(streams, 1):
            spool.fetch(url, f"{number} of {len(streams)}")
    notes = {url: spool_path(directory, url).with_suffix(".txt") for url in streams}
    warnings = [note.read_text(encoding="utf-8") for note in notes.values() if note.is_file()]
    return [url.local or spool_path(directory, url) for url in urls], tuple(warnings)


def spool_path(directory: Path, url: TarUrl) -> Path:
    """Where the bytes of a stream lie."""
    return directory / f"{xxhash.xxh3_128_hexdigest(url.url.encode('utf-8', 'surrogateescape'))}.tar"


def remove_spooled(urls: Sequence[TarUrl], directory: Path) -> None:
    """Remove what `spooled` has written for these tars, and the directory if nothing else is in it."""
    for url in urls:
        if url.local is None:
            for path in (spool_path(directory, url), spool_path(directory, url).with_suffix(".txt")):
                path.unlink(missing_ok=True)
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()


class _Spool:
    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._say = say

    def fetch(self, url: TarUrl, number: str) -> None:
        """Copy one stream into its file, if it is not there yet."""
        path = spool_path(self._directory, url)
        if path.is_file():
            return
        self._say(f"spooling {number}: {url.name}")
        broken = ""
        size, said = 0, time.monotonic()
        with atomic_file(path) as file:
            stream = _Stream(url)
            try:
                for chunk in stream.chunks():
                    file.write(chunk)
                    size += len(chunk)
                    if time.monotonic() - said > _SAY_SECONDS:
                        said = time.monotonic()
                        self._say(f"spooling {number}: {url.name}, {decimal(size)} so far")
                broken = stream.end()
            finally:
                stream.abort()
            file.flush()
            if broken and not size:
                raise SourceError(
                    f"{url.url}: can't be opened: {broken}, and not a byte came; check the command or URL"
                )
            if not size:
                raise SourceError(f"{url.url}: gave no bytes; expected a tar")
            with open(temporary_path(path), "rb") as written:
                refuse_other_files(written.fileno(), url.url)
            if broken:  # before the tar has its name, or a kill in between would lose it
                text = f"{url.name}: broke off after {decimal(size)} ({broken}); what came is taken"
                write_atomic(path.with_suffix(".txt"), text.encode())


class _Stream:
    """One URL, opened by `webdataset`. Its commands' exit codes are looked at, which the package does too soon."""

    def __init__(self, url: TarUrl) -> None:
        gopen = _webdataset("gopen")
        try:
            self._stream: Any = gopen.gopen(url.url, "rb")
        except (OSError, ValueError) as error:
            raise SourceError(f"{url.url}: can't be opened: {error}") from error
        self._pipe: Any = self._stream if isinstance(self._stream, gopen.Pipe) else None
        self._error = ""

    def chunks(self) -> Iterator[bytes]:
        # Pipe.read throws away what it has read if the command has failed meanwhile.
        source = self._stream if self._pipe is None else self._pipe.stream
        try:
            while chunk := source.read(_CHUNK_BYTES):
                yield chunk
        except OSError as error:
            self._error = error.strerror or type(error).__name__

    def end(self) -> str:
        """Why the stream broke off; empty if it came to its end."""
        if self._pipe is None:
            return self._error
        status = self._pipe.proc.wait()
        return self._error or ("" if status in self._pipe.ignore_status else f"exit code {status}")

    def abort(self) -> None:
        """End what is still there of it."""
        if self._pipe is None:
            self._stream.close()
            return
        if self._pipe.proc.poll() is None:
            self._pipe.proc.kill()
        self._pipe.stream.close()
        self._pipe.proc.wait()


def _webdataset(module: str) -> Any:
    """A module of the package."""
    try:
        return importlib.import_module(f"webdataset.{module}")
    except ImportError as error:
        raise SourceError(
            f"the package webdataset is needed for patterns, URLs and pipes, and is missing; install it: {INSTALL}"
        ) from error


@contextmanager
def _owned(directory: Path) -> Iterator[None]:
    """Be the only one who spools into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SourceError(
                f"{directory}: another build is spooling into it; wait for it, or choose another"
            ) from None
        yield
    finally:
        os.close(descriptor)
