"""What a run of scenario ``mesh`` found: one JSON object, or the same for a person.

Rules of the file: pure. A figure of a part that did not run is null.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Final

from loadtest.ledger import Verdict
from loadtest.mesh.heal import Heal
from loadtest.mesh.mail import Mail, together
from loadtest.mesh.spread import Spread
from loadtest.report import milliseconds

Object = dict[str, Any]

MOST_CROSS: Final = 3.0
MOST_CPU: Final = 1.3
MOST_SPREAD_S: Final = 5.0
MOST_HEAL_S: Final = 60.0


@dataclass(slots=True)
class Run:
    """Everything that one run found."""

    machine: Object
    verdict: Verdict = field(default_factory=Verdict)
    sent: int = 0
    rejections: dict[str, int] = field(default_factory=dict)
    mail: Mail | None = None
    spread: Spread | None = None
    heal: Heal | None = None
    seconds: float = 0.0
    trouble: str | None = None

    def is_good(self) -> bool:
        """Whether nothing was lost, doubled, altered or left out."""
        return self.trouble is None and self.verdict.is_good()


def as_object(run: Run) -> Object:
    """One flat object: first what everybody compares, then what explains it."""
    return {
        **_mail(run.mail),
        "lost": run.verdict.lost,
        **_spread(run.spread),
        **_heal(run.heal),
        "verdict": dataclasses.asdict(run.verdict),
        "sent": run.sent,
        "rejections": run.rejections,
        "ok": run.is_good(),
        "aims": aims(run),
        "trouble": run.trouble,
        "seconds": round(run.seconds, 1),
        "machine": run.machine,
    }


def aims(run: Run) -> dict[str, bool]:
    """Which aims were reached, of the parts that ran."""
    found: dict[str, bool] = {}
    if run.mail is not None and run.mail.cross:
        said = _mail(run.mail)
        found["cross_p99"] = said["cross_p99_ms"] <= MOST_CROSS * said["local_p99_ms"]
        found["a_cpu"] = said["a_cpu_ratio"] <= MOST_CPU
        found["c_cpu"] = said["c_cpu_ratio"] <= MOST_CPU
    if run.spread is not None:
        found["records_99"] = run.spread.percentile(0.99) <= MOST_SPREAD_S
    if run.heal is not None and run.heal.heal_s is not None:
        found["heal"] = run.heal.heal_s <= MOST_HEAL_S
    return found


def _mail(mail: Mail | None) -> Object:
    if mail is None or not mail.cross:
        names = ("local_p99_ms", "cross_p99_ms", "a_cpu_ratio", "c_cpu_ratio")
        return dict.fromkeys(names)
    local, cross = (
        milliseconds(together(found, "delivered")) for found in (mail.local, mail.cross)
    )
    return {
        "local_p99_ms": local["p99"],
        "cross_p99_ms": cross["p99"],
        "a_cpu_ratio": round(mail.ratio("node_cpu_us"), 2),
        "c_cpu_ratio": round(mail.ratio("far_cpu_us"), 2),
        "rate": round(mail.rate),
        "local_ms": local,
        "cross_ms": cross,
        "slices": {
            kind: [
                {name: round(value, 1) for name, value in dataclasses.asdict(one.slice).items()}
                | {"commit_size": round(one.commit_size, 1)}
                for one in found
            ]
            for kind, found in (("local", mail.local), ("cross", mail.cross))
        },
    }


def _spread(spread: Spread | None) -> Object:
    if spread is None:
        return {"records_99_s": None}
    at_99 = spread.percentile(0.99)
    return {
        "records_99_s": None if math.isinf(at_99) else round(at_99, 2),
        "records_50_s": round(spread.percentile(0.5), 2) if spread.took_s else None,
        "records_relays": spread.relays,
        "records_pairs": len(spread.took_s) + spread.missing,
        "records_missing": spread.missing,
        "relays_ready_s": round(spread.ready_s, 1),
    }


def _heal(heal: Heal | None) -> Object:
    if heal is None:
        return {"heal_s": None, "rss_100k_mb": None}
    return {
        "heal_s": None if heal.heal_s is None else round(heal.heal_s, 1),
        "rss_100k_mb": round(heal.node_mb, 1),
        "rss_100k_store_mb": round(heal.store_mb, 1),
        "rss_empty_mb": round(heal.empty_mb, 1),
        "rss_empty_store_mb": round(heal.empty_store_mb, 1),
        "records": heal.records,
        "changed_a_side": heal.changed,
        "apart_s": round(heal.apart_s, 1),
        "heal_node_cpu_s": [round(one, 1) for one in heal.node_cpu_s],
    }


# ---------------------------------------------------------------- for a person


def as_text(run: Run) -> str:
    """The same, to be read."""
    machine = run.machine
    said = (
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, "
        f"Python {machine['python']}, {machine['filesystem']} (fsync {machine['fsync_us']} µs)"
    )
    parts = [said]
    if run.mail is not None and run.mail.cross:
        parts.append(_mail_text(run.mail))
    if run.spread is not None:
        parts.append(_spread_text(run.spread))
    if run.heal is not None:
        parts.append(_heal_text(run.heal))
    parts.append(_verdict_text(run))
    return "\n\n".join(parts)


def _mail_text(mail: Mail) -> str:
    found = _mail(mail)
    lines = [f"1. mail at {found['rate']:,}/s, from the planned time of sending to the recipient"]
    for kind, what in (("local", "within one relay"), ("cross", "from A to C")):
        times = "   ".join(f"{at} {value:>7.2f} ms" for at, value in found[f"{kind}_ms"].items())
        lines.append(f"   {what:<18}{times}")
    ratio = found["cross_p99_ms"] / found["local_p99_ms"]
    lines.append(f"   p99 {ratio:.1f} times the local one")
    lines.append(
        f"   CPU an envelope, in times that of a single relay: A {found['a_cpu_ratio']}, "
        f"C {found['c_cpu_ratio']}"
    )
    return "\n".join(lines)


def _spread_text(spread: Spread) -> str:
    found = _spread(spread)
    return (
        f"2. a fresh record at {spread.relays} relays: half of {found['records_pairs']} within "
        f"{found['records_50_s']} s, 99 % within {found['records_99_s']} s, "
        f"{spread.missing} never\n"
        f"   the relays were there and knew each other after {spread.ready_s:.0f} s"
    )


def _heal_text(heal: Heal) -> str:
    took = "never" if heal.heal_s is None else f"{heal.heal_s:.1f} s after"
    cpu = ", ".join(f"{one:.1f}" for one in heal.node_cpu_s)
    return (
        f"3. {heal.records:,} records at two relays, {heal.changed:,} changed on each side in "
        f"{heal.apart_s:.0f} s apart\n"
        f"   equal {took} the end of the partition (node CPU {cpu} s)\n"
        f"   memory with all of them: node {heal.node_mb:.0f} MB (empty {heal.empty_mb:.0f}), "
        f"store {heal.store_mb:.0f} MB (empty {heal.empty_store_mb:.0f})"
    )


def _verdict_text(run: Run) -> str:
    counts = dataclasses.asdict(run.verdict)
    said = ", ".join(f"{value} {name}" for name, value in counts.items())
    ended = f"\nended early: {run.trouble}" if run.trouble is not None else ""
    word = "good" if run.is_good() else "NOT GOOD"
    missed = [name for name, reached in aims(run).items() if not reached]
    aimed = f"aims missed: {', '.join(missed)}" if missed else "all aims reached"
    return (
        f"ledger of {run.sent:,} envelopes: {word}: {said}{ended}\n{aimed}; "
        f"{run.seconds:.0f} s in all"
    )
