"""Outcomes of each family's own label, from stored decisions and bars, and the loss of every model that predicted it.

The labels are those of `pipelines.family_labels`, as training computes them, and the losses those of the families, as
the gate reads them: a live figure and one out of fold are the same measurement.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.contracts import Arm, Estimate, Floats, Ints, JsonObject, ModelAnswer, Probabilities, finite_or_none, utc
from pipelines.experiments.eprocess import block_means
from pipelines.family_labels import DecidedBars, Labels, Sources, labels_at, settled
from pipelines.features.catalog import FEATURES
from pipelines.models.base import Dataset, ModelFamily
from pipelines.params import Params
from pipelines.signals.catalog import SIGNALS
from pipelines.store import DecisionRecord, FamilyOutcome

LossParams = Callable[[str], Mapping[str, object] | None]  # digest of a bundle → its loss_params; None: it is not here


def settled_decisions(
    records: Sequence[DecisionRecord], market: Sources, until: float, params: Params
) -> list[DecisionRecord]:
    """Return the first decision on each close whose labels are all final, oldest first.

    records   of one market, any order; those whose stored rows are of another catalogue of columns are left out
    until     close of the newest base bar of that market, epoch seconds
    """
    first: dict[float, DecisionRecord] = {}
    for record in sorted(records, key=lambda r: (r.decision.as_of, r.decision.ingested_at)):
        if len(record.features) == 8 * len(FEATURES.columns) and len(record.signals) == 8 * len(SIGNALS.columns):
            first.setdefault(record.decision.as_of.timestamp(), record)
    final = settled(np.array(list(first), dtype=np.float64), until, market.grid, params)
    return [record for record, known in zip(first.values(), final.tolist(), strict=True) if known]


def family_outcomes(
    records: Sequence[DecisionRecord], market: Sources, params: Params, loss_params: LossParams
) -> list[FamilyOutcome]:
    """Return the outcome of each family at each decision that has a label and was predicted by a model.

    records      of one market, as `settled_decisions` returns them
    market       its base and decision bars from the first of the history on, with grids, costs and funding
    loss_params  of a bundle by its digest; a prediction of one that is not here has no loss, and is left out
    """
    if not records:
        return []
    decided = DecidedBars(
        np.array([record.decision.as_of.timestamp() for record in records]),
        np.array([np.frombuffer(record.features, dtype=np.float64) for record in records]),
        np.array([np.frombuffer(record.signals, dtype=np.float64) for record in records]),
    )
    found = []
    for name, labels in labels_at(market, decided, params).items():
        family = _family(name)
        losses = _losses(family, [records[i] for i in labels["index"]], labels, loss_params)
        for row, at in enumerate(labels["index"].tolist()):
            if losses[row]:
                one = records[at].decision
                ended = utc(labels["ended"][row])
                label = _label(family, labels, row)
                found.append(FamilyOutcome(one.id, name, one.symbol, one.as_of, ended, label, losses[row]))
    return found


def _family(name: str) -> ModelFamily:
    """Return a family by its name."""
    from pipelines.models.catalog import MODEL_FAMILIES  # half a second that `status` does not wait for

    return MODEL_FAMILIES[name]


def losses_of(
    family: ModelFamily, answers: Sequence[Probabilities], labels: Labels, loss_params: Mapping[str, object]
) -> Floats:
    """Return (n,) the losses of one model's answers, by the family's own loss.

    answers  n numbers, or class → number with the same classes in each
    labels   n rows of the family's labels
    """
    n = len(answers)
    y = labels["y"]
    if isinstance(answers[0], Mapping):
        classes = [name for name in family.classes if name in answers[0]]
        p = np.array([[answer[name] for name in classes] for answer in answers if isinstance(answer, Mapping)])
        if y.ndim == 2:  # a version does not predict a class that its history lacked
            y = y[:, [family.classes.index(name) for name in classes]]
    else:
        p = np.array(answers, dtype=np.float64)
    extras = {name: labels[name] for name in ("ewma",) if name in labels}
    rows = Dataset(
        columns=(), inputs=lambda at: np.empty((len(at), 0)), y=y, weight=np.ones(n), uniqueness=np.ones(n),
        known=labels["known"], ended=labels["ended"], at=np.arange(n), extras=extras,
    )  # fmt: skip
    return family.loss(p, rows, loss_params)


def _losses(
    family: ModelFamily, records: Sequence[DecisionRecord], labels: Labels, loss_params: LossParams
) -> list[dict[str, float]]:
    """Return for each row the losses of the versions that predicted it, by digest."""
    by_digest: dict[str, list[tuple[int, ModelAnswer]]] = {}
    for row, record in enumerate(records):
        for answer in record.decision.models.get(family.family, {}).values():
            if answer.status == "OK" and _is_whole(answer.p):
                by_digest.setdefault(answer.digest, []).append((row, answer))
    found: list[dict[str, float]] = [{} for _ in records]
    for digest, answered in by_digest.items():
        if (constants := loss_params(digest)) is None:
            continue
        rows: Ints = np.array([row for row, _ in answered])
        of_rows = {name: values[rows] for name, values in labels.items()}
        for row, loss in zip(rows, losses_of(family, [a.p for _, a in answered], of_rows, constants), strict=True):
            found[row][digest] = float(loss)
    return found


def _is_whole(p: Probabilities) -> bool:
    """Return whether an answer has a number, of a model with several classes one for each."""
    return p is not None and (not isinstance(p, Mapping) or None not in p.values())


def _label(family: ModelFamily, labels: Labels, row: int) -> float | dict[str, float]:
    """Return the label of a row: its number, or class → number of the classes that are present."""
    y = labels["y"][row]
    if np.ndim(y) == 0:
        return float(y)
    present = np.flatnonzero(labels["direction"][row])
    return {family.classes[c]: float(y[c]) for c in present}


# ---- the live loss of a version -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LiveLoss:
    """Hold the loss of one served version since its training.

    arm       of the version: champion or challenger
    unit      of the loss, as `ModelFamily.loss_name`
    outcomes  n; mean loss of all of them, NaN without one
    blocks    mean of the means of blocks of time with its 95 % t interval; n counts blocks
    markets   symbol → (outcomes, mean loss)
    """

    family: str
    arm: Arm
    version: str
    unit: str
    outcomes: int
    mean: float
    blocks: Estimate
    markets: Mapping[str, tuple[int, float]]

    def describe(self) -> str:
        """Return the loss in words: mean, interval and n, and a figure for each of several markets."""
        name = f"{self.family} {self.arm} version {self.version}"
        if not self.outcomes:
            return f"{name}: no outcome of its own label yet"
        low, high = self.blocks.low, self.blocks.high
        bounds = "" if np.isnan(low) else f"; blocks {self.blocks.value:.4f} [{low:.4f}, {high:.4f}]"
        text = f"{name}: {self.unit} {self.mean:.4f} on {self.outcomes:,} outcomes{bounds}, n = {self.blocks.n} blocks"
        if len(self.markets) > 1:
            text += f" ({', '.join(f'{name} {mean:.4f}, n = {n:,}' for name, (n, mean) in self.markets.items())})"
        return text

    def to_dict(self) -> JsonObject:
        """Return the figures, JSON-ready, and `text` that says them; null where there is no interval yet."""
        figures = {"loss": self.blocks.value, "low": self.blocks.low, "high": self.blocks.high, "mean": self.mean}
        return {
            "family": self.family, "arm": self.arm, "version": self.version, "unit": self.unit,
            "outcomes": self.outcomes, "blocks": self.blocks.n,
            **{name: finite_or_none(value) for name, value in figures.items()},
            "markets": {name: {"outcomes": n, "mean": mean} for name, (n, mean) in self.markets.items()},
            "text": self.describe(),
        }  # fmt: skip


def live_loss(
    outcomes: Sequence[FamilyOutcome], family: str, arm: Arm, version: str, digest: str, *, origin_s: float,
    until_s: float, horizon_s: float, horizons: int,
) -> LiveLoss:  # fmt: skip
    """Return the loss of the version with this digest, pooled over markets by blocks of time.

    outcomes  of the family, since its training; those of other versions are left out
    origin_s, until_s, horizon_s, horizons  as of `eprocess.block_means`
    """
    mine = [(one.symbol, one.as_of.timestamp(), one.losses[digest]) for one in outcomes if digest in one.losses]
    at_s, losses = (np.array([row[part] for row in mine], dtype=np.float64) for part in (1, 2))
    blocks = block_means(at_s, losses, origin_s=origin_s, until_s=until_s, horizon_s=horizon_s, horizons=horizons)
    names = np.array([row[0] for row in mine], dtype=object)
    markets = {
        str(name): (int((names == name).sum()), float(losses[names == name].mean()))
        for name in dict.fromkeys(names.tolist())
    }
    mean = float(losses.mean()) if len(losses) else float("nan")
    unit = _family(family).loss_name
    return LiveLoss(family, arm, version, unit, len(losses), mean, blocks.interval(), markets)
