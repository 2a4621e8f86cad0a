"""Builds the manual page from the parser, so that the package installs both alike."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManualPage(BuildHookInterface):
    """Puts llmfilter.1 where `man llmfilter` finds it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        sys.path.insert(0, self.root)
        from llmfilter.man import render

        page = Path(tempfile.mkdtemp()) / "llmfilter.1"
        page.write_text(render(), encoding="utf-8")
        build_data["shared_data"][str(page)] = "share/man/man1/llmfilter.1"
