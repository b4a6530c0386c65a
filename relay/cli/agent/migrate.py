"""``relay migrate``: move to another relay without loss, and report the result.

The command opens no session: the signed order is the proof. It writes each step to the state file
first. So the same command resumes after Ctrl-C, a crash or a network failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from relay.cli.agent import session
from relay.cli.agent.accept import accept_and_tell
from relay.cli.agent.key import KeyFile
from relay.cli.exit_codes import Exit, exit_of
from relay.cli.output import Progress, fail, printable, say, write, write_json
from relay.client import MigrationProgress, MigrationReport, MigrationStalledError
from relay.client.directory.resolve import resolve_at
from relay.client.errors import AgentError
from relay.client.migration import dry_run as dry_runs
from relay.client.migration.runner import Host, MigrationOptions, MigrationRunner
from relay.client.state.migration_log import MigrationStage
from relay.protocol.ids import Did

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
    """The options of ``relay migrate``."""

    take: bool
    dead_source: bool
    deadline_s: float
    as_json: bool


@asynccontextmanager
async def _opened(file: KeyFile, url: str, *, take: bool) -> AsyncIterator[Host]:
    """Open a key file and its state, and ask the named relay for a newer record of the agent.

    Raises:
        LocalError: a program on this machine has the agent.
    """
    hint = "It can move by itself: Agent.migrate. "
    with session.opened(file, url, look=not take, hint=hint) as opened:
        try:
            found = await resolve_at(opened.agent.origin, opened.key.did, is_own=True)
        except AgentError:
            # it is unreachable: the record in the state file has to do
            found = None
        if found is not None and found.record is not None:
            opened.state.keep_record(found.record.jws.compact)
        yield Host(opened.key, opened.state)


async def migrate(file: KeyFile, url: str, to: str, options: MoveOptions) -> Exit:
    """Start or resume a migration to ``to``, and return the exit code."""
    try:
        async with _runner(file, url, options) as (me, runner):
            if options.dead_source and await _accepts_a_new_key(me, to, as_json=options.as_json):
                return Exit.OK
            moved = await runner.start(to)
    except asyncio.CancelledError:
        if not options.as_json:
            again = f"relay migrate --to {to}"
            say(f"Interrupted. {again} goes on where it was; relay migrate --cancel")
            say("takes it back, unless it is published. Nothing is lost meanwhile.")
        raise
    except MigrationStalledError as exc:
        fail(exc, as_json=options.as_json)
        if not options.as_json:
            say(f"relay migrate --to {to} goes on; --cancel takes it back; --dead-source goes on")
            say("without the old relay.")
        return exit_of(exc)
    return _tell(moved, as_json=options.as_json)


async def cancel(file: KeyFile, url: str, options: MoveOptions) -> Exit:
    """Cancel a migration and return the exit code."""
    async with _runner(file, url, options) as (_, runner):
        done = await runner.cancel()
    if options.as_json:
        write_json({"id": done.id, "cancelled": True, "home": done.source.url})
    else:
        say(f"You live at {done.source.url}, as before.")
    return Exit.OK


@asynccontextmanager
async def _runner(
    file: KeyFile, url: str, options: MoveOptions
) -> AsyncIterator[tuple[Host, MigrationRunner]]:
    """Open a key file and its state to migrate, with progress on stderr."""
    progress = Progress(quiet=options.as_json)

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

    sdk_options = MigrationOptions(
        tell, abandon_source=options.dead_source, deadline_s=options.deadline_s
    )
    try:
        async with _opened(file, url, take=options.take) as me:
            yield me, MigrationRunner(me, sdk_options)
    finally:
        progress.end()


async def _accepts_a_new_key(me: Host, to: str, *, as_json: bool) -> bool:
    """Accept a home's new key if the user abandons the old one.

    It accepts only the DID that an earlier error showed: the user could check that one.
    """
    origin = me.origin(to)
    shown = me.state.found.get(str(origin))
    record = me.state.newest_record
    if not shown or record is None or [home.url for home in record.relays] != [str(origin)]:
        return False
    return await accept_and_tell(me.key, origin, Did(shown), me.state, as_json=as_json)


def _tell(moved: MigrationReport, *, as_json: bool) -> Exit:
    code, conclusion = _conclusion(moved)
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
    say(conclusion)
    return code


def _rows(moved: MigrationReport) -> Iterator[tuple[str, str]]:
    yield "from", moved.source.url
    yield "to", moved.target.url
    yield "hand-off", moved.id
    if moved.waiting is not None:
        there = f"{moved.new_at_target} new there, {moved.duplicates} there already"
        ended = f"acked {moved.acked}, expired {moved.expired}, refused {moved.refused}"
        yield "was there", f"{moved.initial}, and {moved.late} came since"
        yield "moved", f"{moved.moved}: {there}"
        yield "ended", f"{ended}, damaged {moved.corrupt}"
        yield "still waits", str(moved.waiting)
    if moved.digest is not None:
        yield "digest", f"{moved.digest} over {moved.inventory_count} envelopes"
    without = f", {moved.downtime_s:.2f} s without delivery" if moved.inventory_count else ""
    yield "took", f"{moved.seconds:.1f} s{without}"


def _conclusion(moved: MigrationReport) -> tuple[Exit, str]:
    if moved.missing or moved.discrepancies:
        rest = "but not all of it fits; keep this report (--json has it signed)."
        return Exit.FAILED, f"You live there now, {rest}"
    if moved.waiting is None:
        return Exit.WAITING, (
            "You live there now. The old relay says nothing: what it holds comes should it return, "
            "and all is marked as perhaps seen until then. A relay that knows no other hears of it "
            "by the same command: say it again then."
        )
    if moved.waiting:
        rest = "What still waits follows by itself; the same command looks again."
        return Exit.WAITING, f"You live there now. {rest}"
    rest = "all that was there is there or has ended, with a bounce."
    return Exit.OK, f"You live there now, and {rest}"


async def dry_run(file: KeyFile, url: str, to: str, options: MoveOptions) -> Exit:
    """Report what a migration would lose right now, and return the exit code."""
    async with _opened(file, url, take=True) as me:
        found = await dry_runs.dry_run(me, to)
    if options.as_json:
        write_json(_members(found))
    else:
        _print_dry_run(found)
    if found.is_safe:
        return Exit.OK
    failure = None if found.lost else found.source_failure or found.target_failure
    return Exit.REFUSED if failure is None else exit_of(failure)


def _members(found: dry_runs.DryRun) -> dict[str, Any]:
    waiting = found.waiting
    lost = [{"eid": eid, "why": reason} for eid, reason in found.lost]
    return {
        "from": found.source.url,
        "to": found.target.url,
        "safe": found.is_safe,
        "waiting": None if waiting is None else len(waiting),
        "bytes": None if waiting is None else sum(one.size for one in waiting),
        "lost": None if waiting is None else lost,
        "lost_if_source_vanished": None if waiting is None else [one.eid for one in waiting],
        "source": _failure_members(found.source_failure),
        "target": _failure_members(found.target_failure),
    }


def _failure_members(failure: AgentError | None) -> dict[str, str] | None:
    return None if failure is None else {"error": failure.code, "detail": failure.detail}


def _print_dry_run(found: dry_runs.DryRun) -> None:
    refused = found.target_failure
    if found.waiting is None:
        reason = found.source_failure.detail if found.source_failure else "no answer"
        write("unknown")
        say(f"{found.source.url} does not say what it holds: {printable(reason)}.")
        say("Moving now (--dead-source) would lose all of it until that relay returns; how much")
        say("that is nobody knows.")
    else:
        count, size = len(found.waiting), sum(one.size for one in found.waiting)
        write(str(len(found.lost)))
        for eid, lost in found.lost:
            write(f"{eid}  {lost}")
        say(f"Moving now would lose {len(found.lost)} of {count} ({size} bytes).")
        say(f"Should {found.source.url} vanish right now, {count} would be lost:")
        for one in found.waiting:
            say(f"  {one.eid}")
    if refused is not None:
        say(f"{found.target.url} would not take it: {refused.code}: {printable(refused.detail)}.")
