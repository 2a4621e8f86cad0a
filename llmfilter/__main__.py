"""Run the command as `python -m llmfilter`."""

import sys

from llmfilter.cli import main

sys.exit(main())
