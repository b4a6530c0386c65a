"""The ``relay`` application: all commands, and the boundary for errors.

An expected failure is one sentence on stderr and an exit code of :mod:`relay.cli.exit_codes`,
never a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from relay import __version__
from relay.cli import output
from relay.cli.agent import commands as agent_commands
from relay.cli.dev import commands as dev_commands
from relay.cli.exit_codes import MEANING, Exit, LocalError
from relay.cli.node import commands as node_commands
from relay.cli.options import Json

_EPILOG: Final = "Exit codes: " + "; ".join(f"{code.value} {MEANING[code]}" for code in Exit) + "."

UsageError: Final[Any] = typer.BadParameter.__bases__[0]
"""Wrong arguments. Typer takes it from click or its own copy, and exports only the subclass."""

app = typer.Typer(
    name="relay",
    help="A relay that tells the truth about delivery, and the agents that use it.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    *, version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False
) -> None:
    if version:
        output.write(f"relay {__version__}")
        raise typer.Exit


@app.command("version")
def _version(*, json: Json = False) -> None:
    """Show the version."""
    if json:
        output.write_json({"version": __version__})
    else:
        output.write(f"relay {__version__}")


app.add_typer(agent_commands.app)
app.add_typer(node_commands.app)
app.add_typer(dev_commands.app)
app.add_typer(agent_commands.id_app, name="id")
app.add_typer(agent_commands.handle_app, name="handle")
app.add_typer(node_commands.config_app, name="config")
app.add_typer(node_commands.peers_app, name="peers")


def run(words: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    as_json = "--json" in words
    try:
        code = app(list(words), prog_name="relay", standalone_mode=False)
    except UsageError as exc:
        if as_json:
            output.fail(LocalError(exc.format_message(), Exit.USAGE), as_json=True)
        else:
            exc.show()
        return Exit.USAGE
    except typer.Abort:
        return Exit.INTERRUPTED
    except ModuleNotFoundError:
        # an extra is missing, or it is a bug: the caller can tell
        raise
    except Exception as exc:  # noqa: BLE001  the boundary: no traceback for whoever runs a command
        return output.end_with(exc, as_json=as_json)
    return code if isinstance(code, int) else Exit.OK
