"""How the tests lie: as the packages do, and none leans on another."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "langchain_pos"
PACKAGES = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)


def imported(source: Path) -> set[str]:
    """The modules that a file imports, at its head or later, and the names that it takes."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_no_test_imports_a_test_module() -> None:
    """What tests share stands in `tests/support/`, so each can be changed by itself."""
    for source in TESTS.rglob("*.py"):
        for name in imported(source):
            parts = name.split(".")
            leans = parts[0] == "tests" and any(part.startswith("test_") for part in parts)
            assert not leans, (
                f"{source.relative_to(TESTS)} imports {name}; move it to tests/support"
            )


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_package_has_its_tests(package: Path) -> None:
    """A folder of the same path, or a file of the same name, with tests in it."""
    mirror = TESTS / package.relative_to(PACKAGE)
    files = [*mirror.glob("test_*.py"), *mirror.parent.glob(f"test_{mirror.name}.py")]
    assert files, f"no tests in {mirror}/ nor in test_{mirror.name}.py beside it"
