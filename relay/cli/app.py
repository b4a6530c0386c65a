"""The commands and their options; what they do is in the modules beside this one.

Rules of the file: an expected failure is one sentence on stderr and an exit code of
:mod:`relay.cli.exit_codes`, never a traceback. What a command needs is imported when it runs: the
packages of a node come with another extra, and those of an agent take a quarter of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from relay import __version__
from relay.cli import output
from relay.cli.agent import (
    handle_commands,
    migrate_commands,
    talking,
)
from relay.cli.agent.key_commands import id_app
from relay.cli.exit_codes import (
    MEANING,
    Exit,
    LocalError,
)
from relay.cli.node import peer_commands
from relay.cli.options import DEFAULT_URL, Json, Key, PassphraseFile, Url, run_async

_EPILOG: Final = "Exit codes: " + "; ".join(f"{code.value} {MEANING[code]}" for code in Exit) + "."

UsageError: Final[Any] = typer.BadParameter.__bases__[0]
"""Wrong arguments. Typer has it of click or of its own copy of that, and exports the subclass."""

app = typer.Typer(
    name="relay",
    help="A relay that tells the truth about delivery, and the agents that use it.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Settings of a node.", no_args_is_help=True)
app.add_typer(id_app, name="id")
app.add_typer(config_app, name="config")


@app.callback(invoke_without_command=True)
def _root(
    *,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
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


# ---------------------------------------------------------------- agents


@app.command("listen")
def _listen(
    count: Annotated[
        int | None, typer.Option(min=1, help="End after so many.", show_default=False)
    ] = None,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
    relay: Url = DEFAULT_URL,
    *,
    once: Annotated[bool, typer.Option("--once", help="End after one.")] = False,
    json: Json = False,
) -> None:
    """Print what is delivered to this agent, and ack it once it is written."""
    from relay.cli.agent import (  # noqa: PLC0415  as above
        key as identity,
    )
    from relay.cli.agent import (  # noqa: PLC0415  only now
        listen as mail,
    )

    run_async(
        mail.listen(
            identity.KeyFile(key, passphrase_file), relay, count=1 if once else count, as_json=json
        )
    )


@app.command("inbox")
def _inbox(
    limit: Annotated[int, typer.Option(min=0, help="Show at most so many.")] = 20,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
    relay: Url = DEFAULT_URL,
    *,
    json: Json = False,
) -> None:
    """Look at what waits, without acking it. Takes the inbox from a session that listens."""
    from relay.cli.agent import (  # noqa: PLC0415  as above
        key as identity,
    )
    from relay.cli.agent import (  # noqa: PLC0415  only now
        listen as mail,
    )

    run_async(mail.look(identity.KeyFile(key, passphrase_file), relay, limit=limit, as_json=json))


talking.register(app)
peer_commands.register(app)
handle_commands.register(app)
migrate_commands.register(app)


@app.command("demo")
def _demo(
    what: Annotated[
        Literal["relay", "mesh", "migrate"],
        typer.Argument(help="relay: one relay; mesh: three of them; migrate: an agent moves."),
    ] = "relay",
) -> None:
    """Watch an envelope survive a killed relay, find its way between relays, or an agent move."""
    from relay.cli.dev.demo import commands  # noqa: PLC0415  as above

    demos = {"relay": commands.demo, "mesh": commands.mesh, "migrate": commands.migrate}
    raise typer.Exit(run_async(demos[what]()))


# ---------------------------------------------------------------- nodes

Data = Annotated[
    Path | None, typer.Option("--data", help="Directory of this node.", show_default=False)
]
Listen = Annotated[
    str | None, typer.Option("--listen", help="Public HOST:PORT.", show_default=False)
]
Admin = Annotated[
    str | None, typer.Option("--admin", help="HOST:PORT of the operator.", show_default=False)
]
PublicUrl = Annotated[
    str | None, typer.Option("--public-url", help="Origin that agents dial.", show_default=False)
]
RedisUrl = Annotated[
    str | None, typer.Option("--redis-url", help="An external store.", show_default=False)
]


@app.command("serve")
def _serve(
    data: Data = None,
    listen: Listen = None,
    admin: Admin = None,
    public_url: PublicUrl = None,
    redis_url: RedisUrl = None,
) -> None:
    """Run a relay node. Every other setting is a RELAY_ variable: relay config show."""
    from relay.cli.node import serve  # noqa: PLC0415  as above

    raise typer.Exit(serve.serve(_overrides(data, listen, admin, public_url, redis_url)))


@config_app.command("show")
def _config_show(
    data: Data = None,
    listen: Listen = None,
    admin: Admin = None,
    public_url: PublicUrl = None,
    redis_url: RedisUrl = None,
    *,
    json: Json = False,
) -> None:
    """Show every setting of a node, its value and where that comes from."""
    from relay.cli.node import serve  # noqa: PLC0415  as above

    serve.show_config(_overrides(data, listen, admin, public_url, redis_url), as_json=json)


def _overrides(
    data: Path | None,
    listen: str | None,
    admin: str | None,
    public_url: str | None,
    redis_url: str | None,
) -> dict[str, Any]:
    return {
        "data": data,
        "listen": listen,
        "admin": admin,
        "public_url": public_url,
        "redis_url": redis_url,
    }


# ---------------------------------------------------------------- running


def run(words: Sequence[str]) -> int:
    """Run one command; gives its exit code."""
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
        # an extra is missing, or it is a bug: the caller knows which
        raise
    except Exception as exc:  # noqa: BLE001  the boundary: no traceback for whoever runs a command
        return output.end_with(exc, as_json=as_json)
    return code if isinstance(code, int) else Exit.OK
