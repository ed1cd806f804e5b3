"""Every example runs as a script on the shipped model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
STUDENT = "Pascal Vireaux"
"""The answer to the demo's question."""
NAMES = {
    "agent_tool.py": ["## Ann Porter GPA 3.41, wanted 3.00 to 3.50, yes"],
    "chain.py": ["2.0 to 2.5: Ben Castle", "3.0 to 3.5: Ann Porter", "4.5 to 5.0: Cleo Marsh"],
    "chat_model.py": [f"name: {STUDENT}", "'name': 'add'", "Kofi Amoateng", "Leocadia Brandt"],
    "existing_server.py": [f"name: {STUDENT}"],
    "mcp_client.py": ["3 of 3", "## Ann Porter GPA 3.41, wanted 3.00 to 3.50, yes"],
    "quickstart.py": [STUDENT, "GPA 2.69", f"name: {STUDENT}"],
    "responses_client.py": [f"name: {STUDENT}", "resp_"],
    "serve_client.py": [f"{STUDENT}: GPA 2.69", f"name: {STUDENT}"],
    "streaming.py": [f"10 branches: name: {STUDENT}"],
    "your_own_model.py": [f"name: {STUDENT}", "GPA 3.91", "GPA 2.27"],
}
"""What each example prints, of what its own question holds."""


def test_there_are_examples() -> None:
    """The folder is found, so that the test below cannot pass by finding nothing."""
    assert {path.name for path in EXAMPLES} == set(NAMES)


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(script: Path) -> None:
    """It exits with 0, its answer names what its question holds, and it has under fifty lines."""
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    for name in NAMES[script.name]:
        assert name in " ".join(done.stdout.split())
    assert len(script.read_text().splitlines()) < 50
