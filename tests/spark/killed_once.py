"""Runs a command as it is; but the first time at all (FLAG is not there yet), kills it after some lines of its output.

usage: killed_once.py FLAG LINES COMMAND [ARGUMENT ...]
"""

import os
import subprocess
import sys


def main(flag: str, most: str, *command: str) -> int:
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        os.execvp(command[0], command)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as victim:
        assert victim.stdout
        for _ in range(int(most)):
            sys.stdout.buffer.write(victim.stdout.readline())
        victim.kill()
    return 137


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
