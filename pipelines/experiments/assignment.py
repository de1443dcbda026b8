"""Which arm decides: a keyed hash of (experiment, symbol, block of time), so that one symbol has one arm a whole block.

An experiment that runs has an assignment from its start. Before its first stage the champion decides everything; each
stage gives the challenger a share of the units from a block on. Pure functions: who has the experiment's row and its
transitions computes every assignment again.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from math import floor
from typing import Any, Literal, NamedTuple

from pipelines.contracts import JsonObject
from pipelines.errors import BadValues

Arm = Literal["champion", "challenger"]
UNITS = 2**64  # values of the hash
WEIGHT_TOLERANCE = 1e-9  # by which weights of one stage may miss one, as decimals are rounded


class Assigned(NamedTuple):
    """Name the arm that decided, and the unit it was assigned by; `str` of it stands in a decision's lineage."""

    experiment: int
    block: int
    arm: Arm

    def __str__(self) -> str:
        """Return it as `experiment 3 block 17 challenger`."""
        return f"experiment {self.experiment} block {self.block} {self.arm}"


def read_assigned(text: str) -> Assigned:
    """Return what `str` of an `Assigned` says. Raises BadValues."""
    words = text.split()
    if len(words) == 5 and (words[0], words[2]) == ("experiment", "block") and words[4] in ("champion", "challenger"):
        return Assigned(int(words[1]), int(words[3]), "challenger" if words[4] == "challenger" else "champion")
    raise BadValues(f"{text!r} names no arm; it would be like `experiment 3 block 17 challenger`")


@dataclass(frozen=True, slots=True)
class Stage:
    """Hold the challenger's share of units, in force from a block on."""

    from_block: int
    weight: float


@dataclass(frozen=True, slots=True)
class Assignment:
    """Hold how the units of one experiment are assigned.

    key                    hex digits, drawn when the experiment began
    origin_s, period_s     start of block 0 and time from one block to the next, market time in seconds
    champion, challenger   digests of the two arms
    guarded                the arm that guardrails watch: of a probation the champion, else the challenger
    stages                 in the order of their blocks; none: the champion decides everything
    """

    experiment: int
    key: str
    origin_s: float
    period_s: float
    champion: str
    challenger: str
    guarded: Arm = "challenger"
    stages: tuple[Stage, ...] = ()

    def block(self, at_s: float) -> int:
        """Return the number of the block that holds a close, market time in epoch seconds."""
        return floor((at_s - self.origin_s) / self.period_s)

    def start_s(self, block: int) -> float:
        """Return when a block starts, market time in epoch seconds."""
        return self.origin_s + block * self.period_s

    def weight(self, block: int) -> float:
        """Return the challenger's share of the units of a block; 0 before the first stage."""
        return next((stage.weight for stage in reversed(self.stages) if stage.from_block <= block), 0.0)

    def arm(self, symbol: str, block: int) -> Arm:
        """Return the arm that a symbol is assigned to in a block. A larger weight moves nobody back to the champion."""
        unit = f"{self.experiment}|{symbol}|{block}".encode()
        value = int.from_bytes(hmac.digest(bytes.fromhex(self.key), unit, sha256)[:8])
        return "challenger" if value < self.weight(block) * UNITS else "champion"

    def to_dict(self) -> JsonObject:
        """Return it as the generation file has it: the weights of a stage by digest, they sum to one."""
        return {
            "experiment": self.experiment, "key": self.key, "origin_s": self.origin_s, "period_s": self.period_s,
            "champion": self.champion, "challenger": self.challenger, "guarded": self.guarded,
            "stages": [
                {
                    "from_block": stage.from_block,
                    "weights": {self.champion: 1.0 - stage.weight, self.challenger: stage.weight},
                }
                for stage in self.stages
            ],
        }  # fmt: skip


def read_assignment(content: Mapping[str, Any]) -> Assignment:
    """Return an assignment from what `to_dict` gives.

    Raises  BadValues where weights are not those of the two arms, do not sum to one, or shrink from stage to stage
    """
    fields = {name: value for name, value in content.items() if name != "stages"}
    champion, challenger = str(content["champion"]), str(content["challenger"])
    stages = []
    for stage in content["stages"]:
        weights: Mapping[str, float] = stage["weights"]
        if set(weights) != {champion, challenger}:
            raise BadValues(f"weights of {', '.join(sorted(weights))}: must be those of the two arms")
        if abs(sum(weights.values()) - 1.0) > WEIGHT_TOLERANCE or min(weights.values()) < 0.0:
            raise BadValues(f"weights {', '.join(f'{w:g}' for w in weights.values())}: must be shares that sum to one")
        stages.append(Stage(int(stage["from_block"]), weights[challenger]))
    for before, after in pairwise(stages):
        if after.from_block <= before.from_block or after.weight < before.weight:
            raise BadValues(
                f"a weight of {after.weight:g} from block {after.from_block} on follows {before.weight:g} from block "
                f"{before.from_block} on: blocks and weights must grow"
            )
    return Assignment(**fields, stages=tuple(stages))
