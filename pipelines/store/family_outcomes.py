"""Outcomes of the families: what became of each family's own label, and the losses of the models that predicted it.

They are computed from decisions and bars that are stored, by the code of the labels, and could be computed again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from pipelines.errors import BadValues
from pipelines.migrations import tables as t
from pipelines.store.engine import Database, between, lock_table

Label = float | dict[str, float]  # one number, or class → number


@dataclass(frozen=True, slots=True)
class FamilyOutcome:
    """Hold the outcome of one family at one decision.

    as_of        close decided on; resolved_at: when the label ended, by the market
    label        of the family: what `pipelines.family_labels` calls `y`; class → y of a family with several
    losses       digest of a bundle → loss of its prediction, in the unit of the family
    """

    decision_id: str
    family: str
    symbol: str
    as_of: datetime
    resolved_at: datetime
    label: Label
    losses: Mapping[str, float]


class FamilyOutcomeStore(Database):
    """Store outcomes of families, in the order of each market's decisions."""

    def family_outcomes_through(self, symbol: str) -> datetime | None:
        """Return the newest decision of a market whose labels were looked at, by its `as_of`; None before the first."""
        query = sa.select(t.family_outcomes_through.c.through).where(t.family_outcomes_through.c.symbol == symbol)
        with self._engine.connect() as connection:
            return connection.scalar(query)

    def add_family_outcomes(
        self, symbol: str, outcomes: Sequence[FamilyOutcome], through: datetime, at: datetime
    ) -> int:
        """Store the outcomes of a market's decisions up to `through`, received at `at`; return how many are new.

        None is stored of decisions that were looked at before: another run of the same moment found the same.
        Raises  BadValues for an outcome of another market, or one after `through`
        """
        if strange := [o.decision_id for o in outcomes if o.symbol != symbol or o.as_of > through]:
            raise BadValues(f"{', '.join(strange[:3])}: not a decision on {symbol} up to {through:%F %T} UTC")
        of_symbol = t.family_outcomes_through.c.symbol == symbol
        with self.writing() as connection:
            lock_table(connection, t.family_outcomes_through)
            before = connection.scalar(sa.select(t.family_outcomes_through.c.through).where(of_symbol))
            if before is not None and through <= before:
                return 0
            fresh = [_row(one, at) for one in outcomes if before is None or one.as_of > before]
            if fresh:
                connection.execute(sa.insert(t.family_outcomes), fresh)
            if before is None:
                connection.execute(sa.insert(t.family_outcomes_through), {"symbol": symbol, "through": through})
            else:
                connection.execute(sa.update(t.family_outcomes_through).where(of_symbol).values(through=through))
            return len(fresh)

    def family_outcomes(
        self, family: str, since: datetime | None = None, until: datetime | None = None
    ) -> list[FamilyOutcome]:
        """Return the outcomes of a family with since <= as_of < until, of all markets, oldest decision first."""
        o = t.family_outcomes.c
        query = between(sa.select(t.family_outcomes).where(o.family == family), o.as_of, since, until)
        return [_outcome(row) for row in self._rows(query.order_by(o.as_of, o.symbol))]


def _row(one: FamilyOutcome, at: datetime) -> dict[str, object]:
    """Return the row of an outcome. Raises BadValues for a figure that is not finite."""
    try:
        label, losses = (json.dumps(part, separators=(",", ":"), allow_nan=False) for part in (one.label, one.losses))
    except ValueError as error:
        raise BadValues(f"{one.family} of decision {one.decision_id}: {error}; label and losses are numbers") from error
    return {
        "decision_id": one.decision_id, "family": one.family, "symbol": one.symbol, "as_of": one.as_of,
        "resolved_at": one.resolved_at, "ingested_at": at, "label": label, "losses": losses,
    }  # fmt: skip


def _outcome(row: RowMapping) -> FamilyOutcome:
    """Return the outcome of a row."""
    return FamilyOutcome(
        row["decision_id"], row["family"], row["symbol"], row["as_of"], row["resolved_at"], json.loads(row["label"]),
        json.loads(row["losses"]),
    )  # fmt: skip
