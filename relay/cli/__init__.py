"""The ``relay`` command. It names the extra to install if a package is missing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from relay import __version__
from relay.cli import streams
from relay.cli.exit_codes import Exit, LocalError

_CLI = frozenset({"typer", "click"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return an exit code of :mod:`relay.cli.exit_codes`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    streams.install()
    try:
        if words in (["--version"], ["version"]):
            # before the imports below: a script that asks for the version asks often
            sys.stdout.write(f"relay {__version__}\n")
            return Exit.OK
        from relay.cli.app import run  # noqa: PLC0415  typer comes with an extra

        return run(words)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except streams.OutputError as exc:
        return _fail(exc, words)
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        if not package or package == "relay":
            raise
        extra = "cli" if package in _CLI else "server"
        what = f"{package} is not installed; pip install 'did-relay[{extra}]'"
        return _fail(LocalError(what), words)


def _fail(exc: LocalError, words: Sequence[str]) -> int:
    from relay.cli import output  # noqa: PLC0415  not for who asks for the version

    output.fail(exc, as_json="--json" in words)
    return exc.ends
