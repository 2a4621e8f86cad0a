"""Run the command: its entry, and `python -m llmfilter`."""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to save yet: end without a traceback

from llmfilter.cli import main

if __name__ == "__main__":
    sys.exit(main())
