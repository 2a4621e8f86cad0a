"""The terminal that the user looks at: found, and written only where that disturbs and stops nobody."""

import errno
import fcntl
import os
import signal
import socket
import sys

from llmfilter.output.writer import is_writable, write_all

_TIOCGDEV = 0x80045432  # which device it is, also for /dev/tty (linux/include/uapi/asm-generic/ioctls.h)
CLEAR = b"\r\x1b[K"  # the line, on which an llmfilter may have a bar
_COLUMNS = 80  # where it does not tell
_NARROW_LEAST = 20


class Terminal:
    """A terminal by its descriptor.

    is_stderr: whether error lines go there too; is_painted: whether it may be shown colours.
    """

    def __init__(self, fd: int, is_stderr: bool, is_painted: bool) -> None:
        self._fd = fd
        self.is_stderr = is_stderr
        self.is_painted = is_painted
        self._claim: socket.socket | None = None

    @property
    def columns(self) -> int:
        """Return how many characters fit into a line without touching its end."""
        try:
            columns = os.get_terminal_size(self._fd).columns
        except OSError:
            columns = 0
        return max(_NARROW_LEAST, (columns or _COLUMNS) - 1)

    @property
    def is_ours(self) -> bool:
        """Whether the program is in the terminal's foreground."""
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError as error:
            return error.errno == errno.ENOTTY  # not the one that controls us: nobody is put into its background

    @property
    def is_stopped(self) -> bool:
        """Whether a write would wait, as after Ctrl-S."""
        return not is_writable(self._fd)

    @property
    def device(self) -> int:
        """Return the device's number, also for /dev/tty."""
        try:
            encoded = int.from_bytes(fcntl.ioctl(self._fd, _TIOCGDEV, bytes(4)), sys.byteorder)
        except OSError:
            return os.fstat(self._fd).st_rdev
        # linux/include/linux/kdev_t.h: new_decode_dev
        return os.makedev((encoded & 0xFFF00) >> 8, (encoded & 0xFF) | ((encoded >> 12) & 0xFFF00))

    def write(self, data: bytes) -> None:
        """Write in the foreground, and nothing elsewhere; where the terminal has gone, nobody misses it."""
        # Put into the background just now, the program would be stopped by this write (stty tostop).
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            if self.is_ours:
                write_all(self._fd, data)
        except OSError:
            pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def claim(self) -> bool:
        """Return whether this process, of all llmfilters on the terminal, is the one to draw a bar.

        The name of a socket serves as lock: it leaves no file, and ends with its process.
        """
        if self._claim is None:
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                claim.bind(f"\0llmfilter-bar-{self.device:x}")
            except OSError as error:
                claim.close()
                return error.errno != errno.EADDRINUSE  # where there are no such names, nobody is kept from drawing
            self._claim = claim
        return True

    def release(self) -> None:
        """Let another process draw."""
        if self._claim:
            self._claim.close()
            self._claim = None


def find_terminal(stderr: int, is_painted: bool) -> Terminal | None:
    """Return the terminal that stderr is, else the one that controls the program; None where there is none.

    What was started by nohup is not to be seen on the latter.
    """
    if os.isatty(stderr):
        return Terminal(stderr, True, is_painted)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return None
    try:
        return Terminal(os.open("/dev/tty", os.O_WRONLY | os.O_NOCTTY), False, is_painted)
    except OSError:
        return None
