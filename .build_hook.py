"""Make the manual page and the completions from the parser, so that the package installs all alike."""

import re
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import shtab
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The text of -s may be a file's name after @.
TEXT_OR_FILE = {
    "bash": "_llmfilter_text",
    "zsh": "_llmfilter_text",
    "fish": "(_llmfilter_text)",
    "preamble": {
        "bash": '_llmfilter_text() { [[ $1 != @* ]] || compgen -f -P @ -- "${1#@}"; }',
        "zsh": "_llmfilter_text() { compset -P @ && _files }",
        "fish": """function _llmfilter_text
  string replace -r '^' @ (__fish_complete_path (string match -rg '^@(.*)' -- (commandline -ct)))
end""",
    },
}
VALUES = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY, "TEXT": TEXT_OR_FILE}


class SharedFiles(BuildHookInterface[Any]):
    """Put llmfilter.1 where `man llmfilter` finds it, and the completions where the shells look."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        sys.path.insert(0, self.root)
        from llmfilter.man import render
        from llmfilter.options import make_parser

        files = {
            "man/man1/llmfilter.1": render(),
            "bash-completion/completions/llmfilter": complete(make_parser(), "bash"),
            "zsh/site-functions/_llmfilter": complete(make_parser(), "zsh"),
            "fish/vendor_completions.d/llmfilter.fish": complete(make_parser(), "fish"),
        }
        self._folder = tempfile.TemporaryDirectory()
        for number, (place, content) in enumerate(files.items()):
            made = Path(self._folder.name, str(number))
            made.write_text(content, encoding="utf-8")
            build_data["shared_data"][str(made)] = f"share/{place}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._folder.cleanup()


def complete(parser: ArgumentParser, shell: str) -> str:
    """Return the completion of the parser's options for a shell, with the first words of their help."""
    for action in parser._actions:
        action.help = re.split(r"[:;(]", action.help or "")[0].strip()
        if action.metavar in VALUES:
            action.complete = VALUES[action.metavar]  # type: ignore[attr-defined]
        elif action.nargs != 0:
            action.metavar = action.dest  # zsh takes a colon in it for the end
    return shtab.complete(parser, shell)
