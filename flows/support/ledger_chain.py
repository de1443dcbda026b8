"""The ledger's chain in an installation: verified, anchored, and required to be intact before a champion moves."""

from flows.support import processes
from flows.support.installation import Installation, now
from pipelines.errors import ChainBroken
from pipelines.store import Anchor, Verified
from serving.service.home_store import add_anchor, read_anchors

BROKEN = "chain_broken"  # kind of the alarm
SHOWN = 3  # faults that a message names


def verify(installation: Installation, everything: bool = False) -> Verified:
    """Compare the ledger with its chain and the anchors; raise an alarm for what is wrong, clear it if nothing is.

    everything  from the first line; otherwise rows are read from the newest anchor on, and promotions from the first.
                An anchor is only written on what was verified.
    MLflow's anchor counts where MLflow answers.
    """
    found = installation.store.verify_chain(anchors_of(installation), incremental=not everything)
    _show_as_alarm(installation, found)
    return found


def accept(installation: Installation, by: str, reason: str) -> tuple[Verified, Verified]:
    """Start the chain over with what the ledger holds now; return what was found before, and after."""
    before = verify(installation, everything=True)
    if before.faults:
        installation.store.accept(before, anchors_of(installation), by, reason, now())
    return before, verify(installation, everything=True)


def anchors_of(installation: Installation) -> list[Anchor]:
    """Return the anchors of this home, and the one that MLflow holds."""
    return [*read_anchors(installation.settings.home), *_anchor_of_mlflow(installation)]


def require_intact(installation: Installation) -> None:
    """Verify the ledger; raise ChainBroken unless it is as its chain says."""
    require(verify(installation))


def require(found: Verified) -> None:
    """Raise ChainBroken for a verification that found faults."""
    if found.faults:
        raise ChainBroken(
            f"the ledger is not as it was written: {describe(found)}. No champion moves; what is served stays. "
            "`bellwether verify --all` names everything; `bellwether verify --accept --reason WHY` goes on with it."
        )


def anchor(installation: Installation) -> Anchor | None:
    """Seal the decisions that came in, and write down what the chain ends with: in the home, and in MLflow if it is up.

    The caller has verified the chain. Returns None without the chain's key.
    """
    at = now()
    head = installation.store.seal_decisions(at)
    if head is None:
        return None
    made = Anchor(head.seq, head.mac, at.isoformat(timespec="seconds"), "this home")
    add_anchor(installation.settings.home, made)
    if processes.is_responding(installation.settings, "mlflow"):
        installation.tracking.set_chain_anchor(made.seq, made.mac, made.at)
    return made


def describe(found: Verified) -> str:
    """Return the first faults in words, and how many more there are."""
    named = "; ".join(fault.describe() for fault in found.faults[:SHOWN])
    more = len(found.faults) - SHOWN
    return named if more <= 0 else f"{named}; and {more:,} more"


def _anchor_of_mlflow(installation: Installation) -> list[Anchor]:
    """Return the anchor that MLflow holds; none where it holds none, or does not answer."""
    if not processes.is_responding(installation.settings, "mlflow"):
        return []
    tag = installation.tracking.chain_anchor()
    return [] if tag is None else [Anchor(*tag, "the anchor in MLflow")]


def _show_as_alarm(installation: Installation, found: Verified) -> None:
    """Keep one open alarm with the present faults; none where there are none."""
    known = [alarm for alarm in installation.store.alarms() if alarm.kind == BROKEN]
    detail = describe(found)[:400]
    if not found.faults:
        for alarm in known:
            installation.store.clear_alarm(alarm.id, now())
    elif known:
        installation.store.revise_alarm(known[0].id, detail)
    else:
        installation.store.raise_alarm(BROKEN, "critical", detail, now())
