"""The command `langchain-pos`: ask, chat, batch, demo, bench, serve, mcp, doctor.

Exit codes:

    0    every question was answered
    1    a question, or a step of one, failed
    2    the command line or its input is unusable
    3    the model cannot be loaded, or cannot be served
    4    a fault in langchain-pos itself; run again with --debug and report it
    130  interrupted

Errors are one line on stderr; `--debug` shows tracebacks. torch and transformers are imported only
by the commands that need them, so `--help` is fast.

Every option has an environment variable, which the command line overrides: `LANGCHAIN_POS_` and
its name, for example `LANGCHAIN_POS_MODEL` or `LANGCHAIN_POS_MAX_QUEUE`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from langchain_pos.cli.ask import ask
from langchain_pos.cli.batch import batch
from langchain_pos.cli.bench import bench
from langchain_pos.cli.chat import chat
from langchain_pos.cli.demo import demo
from langchain_pos.cli.doctor import doctor
from langchain_pos.cli.mcp import mcp
from langchain_pos.cli.serve import serve

app = typer.Typer(
    help="Answer questions with parallel decoding in one sequence.",
    epilog="Exit codes: 0 answered, 1 a question failed, 2 usage, 3 the model cannot be loaded, "
    "4 a fault in langchain-pos itself, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command."""
    app(prog_name="langchain-pos")


def _print_version(wanted: bool) -> None:
    if wanted:
        from langchain_pos import __version__

        typer.echo(f"langchain-pos {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Answer questions with parallel decoding in one sequence."""


for command in (ask, chat, batch, demo, bench, serve, mcp, doctor):
    app.command(context_settings={"auto_envvar_prefix": "LANGCHAIN_POS"})(command)
