"""A cache's folder: found, opened, and refused where it can't be used."""

import errno
import mmap
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import lmdb

from llmfilter.errors import UsageError

# The map is sparse and costs only address space; a size beyond need never has to be changed, which
# is not safe with several processes. Where `ulimit -v` leaves less, the largest that fits is used.
_MAP_BYTES = [1 << 40, 1 << 36, 1 << 33, 1 << 31, 1 << 30, 1 << 28]
VALUE_BYTES_MOST = (16 << 20) + (1 << 17)  # the largest answer with its header and its keys
_TREE_FLAGS = "=44xH46xH"  # of both trees, in each of the file's two first pages (LMDB 0.9: struct MDB_meta)
_MAIN_TREE = struct.Struct("=128xQ8xQ")  # there, too: number of its first page, number of the transaction
_FIRST_NODE, _NODE = "=10xH4xH", "=HHHH"  # a page's flags and its first node; child or value's size, bytes of the key
_BRANCH, _LEAF, _DEPTH_MOST = 1, 2, 32
_ODD_FLAGS = 0x76  # REVERSEKEY, DUPSORT, DUPFIXED, INTEGERDUP, REVERSEDUP
_READERS_MOST = 1024  # processes on one folder; LMDB's default of 126 is used up by a cluster job
_LOCK_BYTES = 64 * _READERS_MOST + 128  # of a lock file: a cache line for each, and two for itself
_NETWORK = {
    *("9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"),
    *("fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "fuse.gcsfuse", "fuse.rclone", "virtiofs"),
}
KEY_BYTES = 32  # SHA-256
_HEAD = struct.Struct("=QHHII")  # of LMDB's first page: number, padding, flags, offsets, magic (struct MDB_meta)
_META, _MAGIC = 0x08, 0xBEEFC0DE
_NOT_LMDB = (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError, lmdb.PageNotFoundError)
_MADE_BYTES_MOST = 16 * mmap.PAGESIZE + VALUE_BYTES_MOST  # of a new file, with its hole
_HEADROOM_BYTES = 3 << 27  # of address space for threads (each with an arena of 64 MB), TLS and answers
MOUNTS = "/proc/self/mountinfo"


def cache_folder(named: str | None, environ: Mapping[str, str]) -> Path:
    """Return where the cache is; the usual place follows the XDG Base Directory Specification.

    Raise RuntimeError where a home that it needs is not known.
    """
    if named:
        return Path(named).expanduser()
    home = environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if home.startswith("/") else Path("~/.cache").expanduser()
    return base / "llmfilter"


def open_folder(folder: Path) -> lmdb.Environment:
    """Open or create a cache folder; raise UsageError with the way out if it can't be used."""
    file_system = network_file_system(folder)
    if file_system:
        raise UsageError(
            f"the cache {folder} is on a network file system ({file_system}), where LMDB loses data: "
            "give a folder on a local disk with --cache /local/dir"
        )
    files = folder / "data.mdb", folder / "lock.mdb"
    if any(each.exists() and not each.is_file() for each in files):  # LMDB would wait for ever for who opens a pipe
        raise UsageError(_not_ours(folder))
    made = [each for each in (files[0], folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_lockable(files[1])
        env = _open_or_make(folder)
        if made:  # what is in the file before its name, and that before anything is printed
            env.sync(True)
        for each in made:
            _sync_folder(each.parent)
    except _NOT_LMDB:
        raise UsageError(_not_ours(folder)) from None
    except (OSError, lmdb.Error) as fault:
        why = getattr(fault, "strerror", None) or fault
        raise UsageError(
            f"the cache {folder} can't be opened ({why}): give another folder with --cache, or --no-cache"
        ) from None
    _make_readable(folder / "data.mdb", env)
    env.reader_check()
    return env


def _make_lockable(file: Path) -> None:
    """Give a lock file its room: LMDB writes it through a map, where a full disk ends the process (SIGBUS).

    To be called while this process has it not open otherwise: to close a file takes its locks away.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_blocks * 512 < _LOCK_BYTES:
            os.posix_fallocate(descriptor, 0, _LOCK_BYTES)
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):  # else it can't be told beforehand
            raise
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: without its name a file that is on the disk is lost in a power cut."""
    with suppress(OSError):  # not every file system can, and who may write in a folder may not be allowed to read it
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _open_or_make(folder: Path) -> lmdb.Environment:
    """Open a folder's cache; make it anew where a crash, or a full disk, came before its first answer."""
    try:
        return open_largest(folder)
    except _NOT_LMDB:
        file = folder / "data.mdb"
        if not _holds_nothing(file):
            raise
        file.unlink()
        return open_largest(folder)


def _holds_nothing(file: Path) -> bool:
    """Return whether nothing was ever stored in an LMDB file, as far as it came to the disk."""
    with file.open("rb") as data:
        content = data.read(_MADE_BYTES_MOST + 1)
    number, _, flags, _, magic = _HEAD.unpack(content[: _HEAD.size].ljust(_HEAD.size, b"\0"))
    is_lmdb = (number, flags, magic) == (0, _META, _MAGIC)
    return is_lmdb and len(content) <= _MADE_BYTES_MOST and not content[2 * mmap.PAGESIZE :].strip(b"\0")


def _make_readable(file: Path, env: lmdb.Environment) -> None:
    """Make all of a map that a look-up may reach part of its file; raise UsageError where damage would end the process.

    LMDB maps the file as it is, and reading behind its end kills the process (SIGBUS): where a tool
    has trimmed free pages off it, or where damage makes the last value seem longer than it is. The file
    gets a hole there, with one block at its end. It never becomes smaller, whoever else writes meanwhile.
    """
    page_bytes = env.stat()["psize"]
    least = (env.info()["last_pgno"] + 1) * page_bytes
    if file.stat().st_size >= least and _is_foreign(file, page_bytes):  # before anything is written into it
        env.close()
        raise UsageError(_not_ours(file.parent))
    fits = least <= env.info()["map_size"]
    with suppress(OSError), open(file, "r+b") as data:  # no room for it (a full disk, ulimit -f)
        if fits and os.fstat(data.fileno()).st_size < least + VALUE_BYTES_MOST:
            os.posix_fallocate(data.fileno(), least + VALUE_BYTES_MOST - 1, 1)
    if not fits or file.stat().st_size < least or _has_odd_trees(file, page_bytes):
        env.close()
        raise UsageError(_not_ours(file.parent))


def _is_foreign(file: Path, page_bytes: int) -> bool:
    """Return whether what an LMDB file holds was stored by another program: its first key is none of ours.

    It is read from the file: LMDB would follow a damaged offset behind the file's end, where no hole is yet.
    """
    with file.open("rb") as data, suppress(struct.error, OSError, ValueError):  # empty, or damaged: costs answers only
        page = max(_MAIN_TREE.unpack(data.read(page_bytes)[: _MAIN_TREE.size])[::-1] for _ in range(2))[1]
        for _ in range(_DEPTH_MOST):
            data.seek(page * page_bytes)
            content = data.read(page_bytes)
            flags, node = struct.unpack_from(_FIRST_NODE, content)
            low, middle, high, key_bytes = struct.unpack_from(_NODE, content, node)
            if not flags & _BRANCH:
                return bool(flags & _LEAF) and key_bytes != KEY_BYTES
            page = low | middle << 16 | high << 32
    return False


def _has_odd_trees(file: Path, page_bytes: int) -> bool:
    """Return whether the flags of a tree ask for what no cache has, like several values under a key: LMDB aborts."""
    with file.open("rb") as data:
        pages = [data.read(page_bytes) for _ in range(2)]
    return any(flags & _ODD_FLAGS for page in pages for flags in struct.unpack_from(_TREE_FLAGS, page))


def open_largest(path: Path) -> lmdb.Environment:
    """Open an LMDB file with the largest map that leaves address space to the rest; raise UsageError or lmdb.Error."""
    for map_bytes in _MAP_BYTES:
        try:
            env = lmdb.open(os.fsencode(path), map_size=map_bytes, mode=0o600, max_readers=_READERS_MOST)
        except lmdb.MemoryError:
            continue
        if _has_headroom():
            return env
        env.close()
    raise UsageError(
        "the cache leaves too little memory to the rest of the run: raise ulimit -v, or leave it out with --no-cache"
    )


def _has_headroom() -> bool:
    """Return whether as much address space is left as a run may need."""
    try:
        mmap.mmap(-1, _HEADROOM_BYTES).close()
    except OSError:
        return False
    return True


def _not_ours(folder: Path) -> str:
    return (
        f"the cache {folder} is damaged or holds something else: move the folder away, or give another one with --cache"
    )


def network_file_system(folder: Path) -> str | None:
    """Return the type of the network file system that a folder is on, or None (also where it can't be told)."""
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
