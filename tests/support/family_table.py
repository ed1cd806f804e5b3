"""The table of families at the end of a test run."""

from __future__ import annotations

import pytest

COLUMNS = ("auto", "sdpa", "eager")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests of the families recorded: family × attention implementation."""
    table: dict[str, dict[str, str]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            properties = dict(getattr(report, "user_properties", ()))
            if getattr(report, "when", "") != "call" or "family" not in properties:
                continue
            said = properties.get("served_by", "")
            cell = said if report.outcome == "passed" else report.outcome
            table.setdefault(properties["family"], {})[properties["column"]] = cell
    if not table:
        return
    terminalreporter.section("families: what serves each attention implementation")
    width = max(len(name) for name in table) + 2
    terminalreporter.write_line("".join([" " * width, *(f"{c:<10}" for c in COLUMNS)]))
    for name, cells in table.items():
        if "refused" in cells:
            line = f"refused: {cells['refused']}"
        else:
            line = "".join(f"{cells.get(column, ''):<10}" for column in COLUMNS)
        terminalreporter.write_line(f"{name:<{width}}{line}".rstrip())
