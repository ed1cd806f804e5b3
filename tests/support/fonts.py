"""Other fonts for a browser than those that it would choose."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CONFIGURATION = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig><dir>{folder}</dir><cachedir>{folder}/cache</cachedir></fontconfig>
"""


def installed(pattern: str = ":") -> list[str] | None:
    """The files of the installed fonts that match a pattern of fontconfig's; None without it."""
    if not shutil.which("fc-list"):
        return None
    command = ["fc-list", pattern, "--format=%{file}\\n"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def typewriter(folder: Path) -> dict[str, str]:
    """The environment of a browser that finds the installed monospaced fonts, and no others.

    They are wider than the fonts that a page gets otherwise, and have fewer characters. What it
    needs is kept in `folder`.
    """
    found = installed(":spacing=100:lang=en")
    if not found:
        pytest.skip("no monospaced font is found; install fontconfig and fonts-dejavu-core")
    for name, font in {Path(font).name: font for font in found}.items():
        (folder / name).symlink_to(font)
    configuration = folder / "fonts.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder), encoding="utf-8")
    return {**os.environ, "FONTCONFIG_FILE": str(configuration)}
