"""Answers that were paid for, in LMDB: looked up by request, durable before their row is printed.

One thread commits whatever has piled up in one transaction (group commit), so that fsync never
stops the event loop and its cost is shared. Several processes may use one folder at once.
"""

import asyncio
import errno
import hashlib
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import lmdb

from llmfilter.batches import Batcher
from llmfilter.errors import RunError, UsageError

Item = tuple[bytes, bytes, "asyncio.Future[None] | None"]  # who waits for it, and for those before it

# The map is sparse and costs only address space; a size beyond need never has to be changed, which
# is not safe with several processes. Where `ulimit -v` leaves less, the largest that fits is used.
_MAP_BYTES = [1 << 40, 1 << 36, 1 << 33, 1 << 31, 1 << 30, 1 << 28]
_VALUE_BYTES_MOST = (16 << 20) + (1 << 17)  # the largest answer with its header and its keys
_TREE_FLAGS = "=44xH46xH"  # of both trees, in each of the file's two first pages (LMDB 0.9: struct MDB_meta)
_ODD_FLAGS = 0x76  # REVERSEKEY, DUPSORT, DUPFIXED, INTEGERDUP, REVERSEDUP
_FOUND_BYTES_MOST = 1 << 20  # in one look-up
_SLOW_S = 10.0  # a commit takes milliseconds
_STILL_S = 0.001  # at most: another process may be at its commit
_FULL_BYTES = 1 << 16  # left on a disk: less than a commit may need
_SEEN_BYTES = 8  # of a key, that tell it from the others of an input
_SEEN_TOGETHER = 500  # in one transaction, which holds up to a page for each
_READERS_MOST = 1024  # processes on one folder; LMDB's default of 126 is used up by a cluster job
_NETWORK = {
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "glusterfs",
    "gpfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "smb3",
    "smbfs",
}
_NETWORK |= {"fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "fuse.gcsfuse", "fuse.rclone", "virtiofs"}
MOUNTS = "/proc/self/mountinfo"


class Keys:
    """Request body → key: a 256-bit digest of URL, headers as typed, and the exact body.

    head: what each body begins with, which is digested only once.
    """

    def __init__(self, url: str, headers: Sequence[str], head: bytes = b"") -> None:
        # Neither a URL nor a header line can hold a line break or a zero byte.
        self._hash = hashlib.sha256("\n".join([url, *headers, "\0"]).encode() + head)
        self._head_bytes = len(head)

    def of(self, bodies: Iterable[bytes]) -> list[bytes]:
        """Return the keys of the requests with these bodies."""
        copy, head_bytes = self._hash.copy, self._head_bytes
        keys = []
        for body in bodies:
            digest = copy()
            digest.update(body[head_bytes:])
            keys.append(digest.digest())
        return keys


class NoCache:
    """Remembers nothing (`--no-cache`). on_failure gets a message if a cache fails in mid-run."""

    on_failure: Callable[[str], None] = staticmethod(lambda message: None)
    folder: Path | None = None

    def find(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value under each key, or None; for the first keys only where values are large."""
        return [None] * len(keys)

    async def put(self, key: bytes, value: bytes) -> bool:
        """Return when a value is on the disk, or False when it can't be."""
        return await self.put_all([(key, value)])

    async def put_all(self, pairs: Sequence[tuple[bytes, bytes]]) -> bool:
        """Return when values under their keys are all on the disk, or False when they can't be."""
        return True

    def close(self) -> None:
        """To be called when nothing waits to be stored."""


class Cache(NoCache):
    """An LMDB folder; where it can't be written any more the run goes on, and it only looks up."""

    def __init__(self, folder: Path) -> None:
        self.folder: Path = folder
        self._loop = asyncio.get_running_loop()
        self._env = open_folder(folder)
        self._inode = self._stat_inode()
        self._slow: asyncio.TimerHandle | None = None
        self._are_put = threading.Event()
        self._commits = Batcher(self._commit, self._committed, self._stand_still)
        self._broken = False

    def find(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As in NoCache; if the cache fails, nothing is found."""
        found: list[bytes | None] = []
        size = 0
        try:
            with self._env.begin(buffers=True) as transaction:
                for view in map(transaction.get, keys):
                    # A damaged length could reach beyond the file, and reading there kills the process.
                    if view is None or len(view) > _VALUE_BYTES_MOST:
                        found.append(None)
                        continue
                    found.append(bytes(view))
                    size += len(view)
                    if size > _FOUND_BYTES_MOST:
                        break
        except lmdb.Error as error:
            self._fail(error)
            return [None] * len(keys)
        return found

    async def put(self, key: bytes, value: bytes) -> bool:
        """As in NoCache."""
        if not self._broken:
            stored = self._loop.create_future()
            self._commits.add([(key, value, stored)])
            await stored
        return not self._broken

    async def put_all(self, pairs: Sequence[tuple[bytes, bytes]]) -> bool:
        """As in NoCache."""
        if pairs and not self._broken:
            stored = self._loop.create_future()
            waiting = [None] * (len(pairs) - 1)
            self._commits.add([(*pair, each) for pair, each in zip(pairs, [*waiting, stored], strict=True)])
            await stored
        return not self._broken

    def _commit(self, batch: list[Item]) -> None:
        if self._stat_inode() != self._inode:
            raise FileNotFoundError("the folder was removed or replaced")
        pairs = [(key, value) for key, value, _ in batch]
        with self._env.begin(write=True) as transaction:
            transaction.cursor().putmulti(pairs)
            self._are_put.set()

    def _stand_still(self) -> None:
        """Lets the puts have the interpreter's lock, but does not wait for the disk.

        py-lmdb lets go of that lock for each single put and would have to win it back from the loop as
        often, which takes 20 times longer than the puts.
        """
        self._slow = self._loop.call_later(_SLOW_S, self._say_slow)
        self._are_put.wait(_STILL_S)

    def _stat_inode(self) -> int:
        try:
            return os.stat(self.folder / "data.mdb").st_ino
        except OSError:
            return 0

    def _say_slow(self) -> None:
        self.on_failure(
            f"the cache {self.folder} has taken {_SLOW_S:.0f} s to store answers: its disk is slow, "
            "or another process that uses it was stopped in mid-commit (jobs, fg)"
        )

    def _committed(self, batch: list[Item], error: Exception | None) -> None:
        self._are_put.clear()
        if self._slow:
            self._slow.cancel()
        if error:
            self._fail(error)
        for _, _, stored in batch:
            if stored:
                stored.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self._broken:  # said once, and nothing is stored any more
            self._broken = True
            self.on_failure(
                f"the cache {self.folder} fails ({_cause(error, self.folder)}); this run goes on without it: "
                "make room, or give another folder with --cache"
            )

    def close(self) -> None:
        """To be called when nothing waits to be stored."""
        self._env.close()


class Seen:
    """Which keys have come before, in a file that has no name: memory does not grow, and a kill leaves nothing behind.

    Of each key only the beginning: to take two for one costs no more than a request that is not printed.
    Raises UsageError where there is no room for a file.
    """

    def __init__(self, folder: Path | None) -> None:
        try:
            self._env = _open_unnamed(folder)
        except (OSError, lmdb.Error) as error:
            raise UsageError(_no_room(error)) from None
        self._added = 0
        self._transaction = self._env.begin(write=True)

    def add(self, key: bytes) -> bool:
        """Note a key; return whether it is new. Raise RunError where there is no room for it."""
        try:
            if self._added == _SEEN_TOGETHER:
                self._transaction.commit()
                self._transaction, self._added = self._env.begin(write=True), 0
            self._added += 1
            return bool(self._transaction.put(key[:_SEEN_BYTES], b"", overwrite=False))
        except lmdb.Error as error:
            raise RunError(_no_room(error)) from None


def open_folder(folder: Path) -> lmdb.Environment:
    """Opens or creates a cache folder; raises UsageError with the way out if it can't be used."""
    file_system = network_file_system(folder)
    if file_system:
        raise UsageError(
            f"the cache {folder} is on a network file system ({file_system}), where LMDB loses data: "
            "give a folder on a local disk with --cache /local/dir"
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        env = _open_largest(folder)
    except (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError, lmdb.PageNotFoundError):
        raise UsageError(_not_ours(folder)) from None
    except (OSError, lmdb.Error) as fault:
        raise UsageError(
            f"the cache {folder} can't be opened ({fault}): give another folder with --cache, or --no-cache"
        ) from None
    _make_readable(folder / "data.mdb", env)
    env.reader_check()
    return env


def _open_unnamed(folder: Path | None) -> lmdb.Environment:
    try:
        descriptor, name = tempfile.mkstemp(dir=folder)
    except OSError:  # a cache's files may be ours to write where its folder isn't
        descriptor, name = tempfile.mkstemp()
    os.close(descriptor)
    try:
        return _open_largest(Path(name), subdir=False, lock=False, sync=False)
    finally:
        os.unlink(name)


def _no_room(error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) else error
    return f"which requests are equal can't be noted ({why}): make room in the cache's folder, or in $TMPDIR"


def _make_readable(file: Path, env: lmdb.Environment) -> None:
    """Make all of a map that a look-up may reach part of its file; raise UsageError where damage would end the process.

    LMDB maps the file as it is, and reading behind its end kills the process (SIGBUS): where a tool
    has trimmed free pages off it, or where damage makes the last value seem longer than it is. The
    file gets a hole there, which takes no room on the disk.
    """
    page_bytes = env.stat()["psize"]
    least = (env.info()["last_pgno"] + 1) * page_bytes
    fits = least <= env.info()["map_size"]
    with suppress(OSError), open(file, "r+b") as data:  # no room for a hole (ulimit -f)
        if fits and os.fstat(data.fileno()).st_size < least + _VALUE_BYTES_MOST:
            data.truncate(least + _VALUE_BYTES_MOST)
    if not fits or file.stat().st_size < least or _has_odd_trees(file, page_bytes):
        env.close()
        raise UsageError(_not_ours(file.parent))


def _has_odd_trees(file: Path, page_bytes: int) -> bool:
    """Return whether the flags of a tree ask for what no cache has, like several values under a key: LMDB aborts."""
    with file.open("rb") as data:
        pages = [data.read(page_bytes) for _ in range(2)]
    return any(flags & _ODD_FLAGS for page in pages for flags in struct.unpack_from(_TREE_FLAGS, page))


def _cause(error: Exception, folder: Path) -> str:
    """Return why a cache has failed; LMDB calls it an input/output error where a disk has taken half of a write."""
    with suppress(OSError):
        disk = os.statvfs(folder)
        if disk.f_bavail * disk.f_frsize < _FULL_BYTES:
            return os.strerror(errno.ENOSPC)
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _open_largest(path: Path, **flags: bool) -> lmdb.Environment:
    for map_bytes in _MAP_BYTES:
        try:
            return lmdb.open(os.fspath(path), map_size=map_bytes, mode=0o600, max_readers=_READERS_MOST, **flags)
        except lmdb.MemoryError:
            if map_bytes == _MAP_BYTES[-1]:
                raise
    raise AssertionError  # the loop returns or raises


def _not_ours(folder: Path) -> str:
    return (
        f"the cache {folder} is damaged or holds something else: move the folder away, or give another one with --cache"
    )


def network_file_system(folder: Path) -> str | None:
    """The type of the network file system that a folder is on, or None (also where it can't be told)."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    device = os.stat(place).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path(MOUNTS).read_text(errors="replace").splitlines()
    except OSError:
        return None
    for mount in mounts:
        # proc_pid_mountinfo(5): id parent major:minor root point options fields… - type source options
        fields = mount.split()
        if len(fields) > 6 and fields[2] == wanted and "-" in fields:
            kind = fields[fields.index("-") + 1]
            if kind in _NETWORK:
                return kind
    return None
