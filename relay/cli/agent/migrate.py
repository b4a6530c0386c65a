"""``relay migrate``: move to another relay without loss, and report the result.

The command opens no session: the signed order is the proof. It writes each step to the state file
first. So the same command resumes after Ctrl-C, a crash or a network failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from relay.cli.agent import locks
from relay.cli.agent.accept import accept_and_tell
from relay.cli.agent.key import KeyFile
from relay.cli.agent.outcome_text import refuse_if_listening
from relay.cli.exit_codes import Exit, exit_of
from relay.cli.output import fail, printable, say, write, write_json
from relay.cli.progress import Progress
from relay.client import MigrationProgress, MigrationReport, MigrationStalledError
from relay.client.directory.resolve import resolve_at
from relay.client.errors import AgentError
from relay.client.http import origin as origins
from relay.client.migration.dry_run import DryRun
from relay.client.migration.dry_run import dry_run as look
from relay.client.migration.runner import Host, MigrationOptions, MigrationRunner
from relay.client.state import agent_state as states
from relay.client.state.migration_log import MigrationStage
from relay.protocol.ids import Did, Eid

WORDS: Final = {
    MigrationStage.PREPARING: "Asking the new relay to get ready",
    MigrationStage.FREEZING: "Asking the old relay to stop delivering",
    MigrationStage.DIGEST: "The old relay tells the new one what was seen",
    MigrationStage.PUBLISHING: "Publishing where you live now",
    MigrationStage.COPYING: "What waits follows",
    MigrationStage.CANCELLING: "Taking it back",
}


@dataclass(frozen=True, slots=True)
class MoveOptions:
    """MoveOptions of ``relay migrate``."""

    take: bool
    dead_source: bool
    deadline_s: float
    as_json: bool


@asynccontextmanager
async def _alone(file: KeyFile, url: str, *, take: bool) -> AsyncIterator[Host]:
    """Open a key file and its state, and look up the agent's home.

    Raises:
        LocalError: a program on this machine has the agent.
    """
    key = file.load()
    with (
        locks.opened(file.state, look=not take) as mine,
        states.opened(file.state, key.did) as state,
    ):
        if not take:
            refuse_if_listening(mine, hint="It can move by itself: Agent.migrate. ")
        await _learn(state, key.did, url)
        yield Host(key, state)


async def _learn(state: states.AgentState, did: Did, url: str) -> None:
    """Ask the named relay for a newer record; ignore it if it is unreachable."""
    try:
        found = await resolve_at(origins.parse(url), did, is_own=True)
    except AgentError:
        return
    if found.record is not None:
        state.keep_record(found.record.jws.compact)


# ---------------------------------------------------------------- moving


async def migrate(file: KeyFile, url: str, to: str, options: MoveOptions) -> Exit:
    """Start or resume a migration to ``to``, and return the exit code."""
    progress = Progress(quiet=options.as_json)
    try:
        async with _alone(file, url, take=options.take) as me:
            if options.dead_source and await _is_back_with_a_new_key(
                me, to, as_json=options.as_json
            ):
                return Exit.OK
            moved = await _migration(me, options, progress).start(to)
    except asyncio.CancelledError:
        progress.end()
        if not options.as_json:
            say(
                f"Interrupted. relay migrate --to {to} goes on where it was; relay migrate --cancel"
            )
            say("takes it back, unless it is published. Nothing is lost meanwhile.")
        raise
    except MigrationStalledError as exc:
        progress.end()
        fail(exc, as_json=options.as_json)
        if not options.as_json:
            say(f"relay migrate --to {to} goes on; --cancel takes it back; --dead-source goes on")
            say("without the old relay.")
        return exit_of(exc)
    finally:
        progress.end()
    return _tell(moved, as_json=options.as_json)


async def _is_back_with_a_new_key(me: Host, to: str, *, as_json: bool) -> bool:
    """Accept a home's new key if the user abandons the old one.

    It accepts only the DID that an earlier error showed: the user could check that one.
    """
    origin = me.origin(to)
    shown = me.state.found.get(str(origin))
    record = me.state.newest_record
    if not shown or record is None or [home.url for home in record.relays] != [str(origin)]:
        return False
    return await accept_and_tell(me.key, origin, Did(shown), me.state, as_json=as_json)


def _migration(me: Host, options: MoveOptions, progress: Progress) -> MigrationRunner:
    def tell(at: MigrationProgress) -> None:
        words = WORDS.get(at.stage)
        if words is None:
            return
        if at.detail:
            words = f"{words}; {at.detail}"
        if at.total:
            progress.count(words, at.done, at.total)
        else:
            progress.tell(words)

    return MigrationRunner(
        me,
        MigrationOptions(tell, abandon_source=options.dead_source, deadline_s=options.deadline_s),
    )


def _tell(moved: MigrationReport, *, as_json: bool) -> Exit:
    code = exit_code(moved)
    if as_json:
        write_json({**moved.to_json(), "complete": moved.is_complete})
        return code
    write(moved.target.url)
    for name, value in _rows(moved):
        say(f"{name:<18}  {printable(value)}")
    for eid in moved.missing:
        say(f"relay: missing: {eid}")
    for complaint in moved.discrepancies:
        say(f"relay: {printable(complaint)}.")
    say(_conclusion(moved))
    return code


def _rows(moved: MigrationReport) -> list[tuple[str, str]]:
    rows = [("from", moved.source.url), ("to", moved.target.url), ("hand-off", moved.id)]
    if moved.waiting is not None:
        ended = f"acked {moved.acked}, expired {moved.expired}, refused {moved.refused}"
        there = f"{moved.new_at_target} new there, {moved.duplicates} there already"
        rows += [
            ("was there", f"{moved.initial}, and {moved.late} came since"),
            ("moved", f"{moved.moved}: {there}"),
            ("ended", f"{ended}, damaged {moved.corrupt}"),
            ("still waits", str(moved.waiting)),
        ]
    if moved.digest is not None:
        rows.append(("digest", f"{moved.digest} over {moved.inventory_count} envelopes"))
    without = f", {moved.downtime_s:.2f} s without delivery" if moved.inventory_count else ""
    return [*rows, ("took", f"{moved.seconds:.1f} s{without}")]


def _conclusion(moved: MigrationReport) -> str:
    if moved.missing or moved.discrepancies:
        return (
            "You live there now, but not all of it fits; keep this report (--json has it signed)."
        )
    if moved.waiting is None:
        return (
            "You live there now. The old relay says nothing: what it holds comes should it return, "
            "and all is marked as perhaps seen until then. A relay that knows no other hears of it "
            "by the same command: say it again then."
        )
    if moved.waiting:
        return (
            "You live there now. What still waits follows by itself; the same command looks again."
        )
    return "You live there now, and all that was there is there or has ended, with a bounce."


def exit_code(moved: MigrationReport) -> Exit:
    """Return the exit code of a report."""
    if moved.missing or moved.discrepancies:
        return Exit.FAILED
    return Exit.OK if moved.waiting == 0 else Exit.WAITING


async def cancel(file: KeyFile, url: str, options: MoveOptions) -> Exit:
    """Cancel a migration and return the exit code."""
    progress = Progress(quiet=options.as_json)
    try:
        async with _alone(file, url, take=options.take) as me:
            done = await _migration(me, options, progress).cancel()
    finally:
        progress.end()
    if options.as_json:
        write_json({"id": done.id, "cancelled": True, "home": done.source.url})
    else:
        say(f"You live at {done.source.url}, as before.")
    return Exit.OK


# ---------------------------------------------------------------- dry run


async def dry_run(file: KeyFile, url: str, to: str, options: MoveOptions) -> Exit:
    """Report what a migration would lose right now, and return the exit code."""
    async with _alone(file, url, take=True) as me:
        found = await look(me, to)
    if options.as_json:
        write_json(_members(found))
    else:
        _print_dry_run(found)
    return _dry_run_exit(found)


def _dry_run_exit(found: DryRun) -> Exit:
    if found.is_safe:
        return Exit.OK
    if found.lost:
        return Exit.REFUSED
    failure = found.source_failure or found.target_failure
    return exit_of(failure) if failure is not None else Exit.REFUSED


def _members(found: DryRun) -> dict[str, Any]:
    refused = found.target_failure
    silent = found.source_failure
    return {
        "from": found.source.url,
        "to": found.target.url,
        "safe": found.is_safe,
        "waiting": None if found.waiting is None else len(found.waiting),
        "bytes": None if found.waiting is None else sum(one.size for one in found.waiting),
        "lost": None if found.waiting is None else [_lost(*one) for one in found.lost],
        "lost_if_source_vanished": (
            None if found.waiting is None else [one.eid for one in found.waiting]
        ),
        "source": None if silent is None else {"error": silent.code, "detail": silent.detail},
        "target": None if refused is None else {"error": refused.code, "detail": refused.detail},
    }


def _lost(eid: Eid, why: str) -> dict[str, str]:
    return {"eid": eid, "why": why}


def _print_dry_run(found: DryRun) -> None:
    if found.waiting is None:
        why = found.source_failure.detail if found.source_failure else "no answer"
        write("unknown")
        say(f"{found.source.url} does not say what it holds: {printable(why)}.")
        say("Moving now (--dead-source) would lose all of it until that relay returns; how much")
        say("that is nobody knows.")
    else:
        write(str(len(found.lost)))
        for eid, lost in found.lost:
            write(f"{eid}  {lost}")
        size = sum(one.size for one in found.waiting)
        say(f"Moving now would lose {len(found.lost)} of {len(found.waiting)} ({size} bytes).")
        say(f"Should {found.source.url} vanish right now, {len(found.waiting)} would be lost:")
        for one in found.waiting:
            say(f"  {one.eid}")
    if found.target_failure is not None:
        refused = found.target_failure
        say(f"{found.target.url} would not take it: {refused.code}: {printable(refused.detail)}.")
