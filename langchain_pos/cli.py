"""The command `langchain-pos`."""


def main() -> None:
    """Run the command."""
    raise SystemExit("not written yet")
