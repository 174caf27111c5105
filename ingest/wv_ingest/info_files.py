"""The lists of a WebVision root: files of `info/`, or members of `info.tar`, or beside them. Read, never unpacked."""

import io
import os
from codecs import BOM_UTF8
from pathlib import Path
from typing import BinaryIO

from wv_ingest.tar_walk import TarWalk

INFO_TAR = "info.tar"


class InfoFiles:
    """Opens lists by their name, wherever they are."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tar = root / INFO_TAR
        self._members: dict[str, tuple[int, int]] = {}
        self.damage = ""
        """What is wrong with the tar, for a person; empty if nothing."""
        if self._tar.is_file():
            with open(self._tar, "rb") as file:
                walk = TarWalk(file.fileno(), os.fstat(file.fileno()).st_size)
                for member in walk.members():
                    name = member.name.decode("utf-8", "backslashreplace").rsplit("/", 1)[-1]
                    if name.endswith(".txt") and member.link is None:
                        self._members[name] = (member.offset, member.size)
                if walk.damage:
                    self.damage = f"{INFO_TAR}: {walk.damage}"

    def __contains__(self, name: str) -> bool:
        return self._file(name) is not None or name in self._members

    def unpacked(self, name: str) -> bool:
        """Whether the list is there as a file, which goes before the tar's member."""
        return self._file(name) is not None

    def where(self, name: str) -> str:
        """For messages: the place of the list."""
        file = self._file(name)
        return str(file) if file is not None or name not in self._members else f"{self._tar}:{name}"

    def open(self, name: str) -> BinaryIO:
        """The list, for reading once from its start; a byte order mark is stepped over.

        Raises:
            FileNotFoundError: there is none.
        """
        file = self._file(name)
        if file is not None:
            opened = open(file, "rb")  # noqa: SIM115 - the caller closes it
        elif name in self._members:
            opened = io.BufferedReader(_Slice(self._tar, *self._members[name]), 1 << 20)
        else:
            raise FileNotFoundError(name)
        if opened.peek(len(BOM_UTF8)).startswith(BOM_UTF8):
            opened.read(len(BOM_UTF8))
        return opened

    def _file(self, name: str) -> Path | None:
        for folder in (self._root / "info", self._root):
            if (folder / name).is_file():
                return folder / name
        return None


class _Slice(io.RawIOBase):
    """Some bytes of a file as a file."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        self._file.seek(offset)
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)[: self._left]  # type: ignore[arg-type] # any writable buffer
        count = self._file.readinto(view) if self._left else 0
        self._left -= count or 0
        return count or 0

    def close(self) -> None:
        self._file.close()
        super().close()
