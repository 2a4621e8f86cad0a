"""Answers that were paid for, in LMDB: looked up by request, durable before their row is printed.

One thread commits whatever has piled up in one transaction (group commit), so that fsync never
stops the event loop and its cost is shared. Several processes may use one folder at once.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import lmdb

from llmfilter.batches import Batcher
from llmfilter.errors import UsageError

Item = tuple[bytes, bytes, Callable[[], object]]

# The map is sparse and costs only address space; a size beyond need never has to be changed, which
# is not safe with several processes. Where `ulimit -v` leaves less, the largest that fits is used.
_MAP_BYTES = [1 << 40, 1 << 36, 1 << 33, 1 << 31, 1 << 30, 1 << 28]
_FOUND_BYTES_MOST = 1 << 20  # read at once
_STILL_S = 0.001  # at most: another process may be at its commit
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

    def of(self, body: bytes) -> bytes:
        """The key of a request with this body."""
        digest = self._hash.copy()
        digest.update(body[self._head_bytes :])
        return digest.digest()


class NoCache:
    """Remembers nothing (`--no-cache`). on_failure gets a message if a cache fails in mid-run."""

    on_failure: Callable[[str], None] = staticmethod(lambda message: None)

    def find(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value under each key, or None: perhaps not for all keys, since 1 MB of values is enough at a time."""
        return [None] * len(keys)

    def put(self, key: bytes, value: bytes, then: Callable[[], object]) -> None:
        """Calls `then` at once."""
        then()

    def close(self) -> None:
        """To be called when nothing waits to be stored."""


class Cache(NoCache):
    """An LMDB folder; where it can't be written any more the run goes on, and it only looks up."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._env = open_folder(folder)
        self._are_put = threading.Event()
        self._commits = Batcher(self._commit, self._committed, self._stand_still)
        self._broken = False

    def find(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As in NoCache; if the cache fails, nothing is found."""
        found: list[bytes | None] = []
        size = 0
        try:
            with self._env.begin() as transaction:
                for stored in map(transaction.get, keys):
                    found.append(stored)
                    if stored:
                        size += len(stored)
                        if size > _FOUND_BYTES_MOST:
                            break
        except lmdb.Error as error:
            self._fail(error)
            return [None] * len(keys)
        return found

    def put(self, key: bytes, value: bytes, then: Callable[[], object]) -> None:
        """Stores a value and calls `then` on the loop once it is on the disk (or can't be)."""
        if self._broken:
            then()
        else:
            self._commits.add([(key, value, then)])

    def _commit(self, batch: list[Item]) -> None:
        pairs = [(key, value) for key, value, _ in batch]
        with self._env.begin(write=True) as transaction:
            transaction.cursor().putmulti(pairs)
            self._are_put.set()

    def _stand_still(self) -> None:
        """Lets the puts have the interpreter's lock, but does not wait for the disk.

        py-lmdb lets go of that lock for each single put and would have to win it back from the loop as
        often, which takes 20 times longer than the puts.
        """
        self._are_put.wait(_STILL_S)

    def _committed(self, batch: list[Item], error: Exception | None) -> None:
        self._are_put.clear()
        if error:
            self._fail(error)
        for _, _, then in batch:
            then()

    def _fail(self, error: Exception) -> None:
        if not self._broken:  # said once, and nothing is stored any more
            self._broken = True
            self.on_failure(
                f"the cache {self._folder} fails ({error}); this run goes on without it: "
                "make room, or give another folder with --cache"
            )

    def close(self) -> None:
        """To be called when nothing waits to be stored."""
        self._env.close()


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
    # LMDB maps the file as it is: reading a page beyond its end would kill the process (SIGBUS).
    pages = env.info()["last_pgno"] + 1
    if os.path.getsize(folder / "data.mdb") < pages * env.stat()["psize"]:
        env.close()
        raise UsageError(_not_ours(folder))
    env.reader_check()
    return env


def _open_largest(folder: Path) -> lmdb.Environment:
    for map_bytes in _MAP_BYTES:
        try:
            return lmdb.open(os.fspath(folder), map_size=map_bytes, mode=0o600, max_readers=_READERS_MOST)
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
