"""Make confseq_betting.json with the package confseq, from its sources: bets on bounded values by its own authors.

Not a test, and confseq is no dependency: its compiled parts need Boost, so its Python alone is read. To make it again,
in an environment of its own:

    pip install "numpy<2" scipy matplotlib multiprocess "setuptools<70" wheel "pybind11<3" scikit-build cmake ninja
    pip download --no-build-isolation --no-deps --no-binary :all: confseq==0.0.11 && tar xzf confseq-0.0.11.tar.gz
    PYTHONPATH=confseq-0.0.11/src python tests/golden/confseq_betting.py

Source  confseq 0.0.11, MIT licence, github.com/gostevehoward/confseq, src/confseq/betting.py; Waudby-Smith and Ramdas
        2024, J. R. Stat. Soc. B 86(1)
"""

import json
from pathlib import Path

import numpy as np
from confseq.betting import betting_cs, betting_mart, diversified_betting_mart

BOUND, ALPHA, BREAKS = 0.25, 0.05, 2000
SHARES = (0.9, 0.45, 0.225, 0.1125)
NULL_MEANS = (-0.1, 0.0, 0.03)  # hypotheses, in the unit of the values


def bets(shares: tuple[float, ...], side: int) -> list:
    """Return functions of values and mean, both in 0 … 1, that bet a share of the largest bet up (1) or down (-1)."""
    return [
        lambda x, m, share=share: np.full(len(x), share / max(m if side > 0 else 1.0 - m, 1e-300)) for share in shares
    ]


def main() -> None:
    """Write the vectors next to this file."""
    rng = np.random.default_rng(7)
    values = {
        "no gain": 0.05 * rng.standard_normal(60),
        "a gain": 0.03 + 0.05 * rng.standard_normal(60),
        "two points": BOUND * rng.choice([-1.0, 1.0], 60),
    }
    cases = []
    for name, raw in values.items():
        clipped = np.clip(raw, -BOUND, BOUND)
        x = (clipped + BOUND) / (2.0 * BOUND)
        wealth = [
            {
                "mean": mean, "share": share,
                "wealth": betting_mart(
                    x, (mean + BOUND) / (2.0 * BOUND), lambdas_fn_positive=lambda x, m: np.full(len(x), np.inf),
                    theta=1, trunc_scale=share,
                ).tolist(),
            }
            for mean in NULL_MEANS for share in SHARES
        ]  # fmt: skip
        mixture = [
            diversified_betting_mart(
                x, (mean + BOUND) / (2.0 * BOUND), bets(SHARES, 1), bets(SHARES, -1), theta=1, trunc_scale=1.0
            ).tolist()
            for mean in NULL_MEANS
        ]
        low, high = betting_cs(
            x, bets(SHARES, 1), bets(SHARES, -1), alpha=ALPHA, breaks=BREAKS, running_intersection=True, theta=0.5,
            trunc_scale=1.0,
        )  # fmt: skip
        low_one, high_one = betting_cs(
            x, bets(SHARES[:1], 1), bets(SHARES[:1], -1), alpha=ALPHA, breaks=BREAKS, running_intersection=True,
            theta=0.5, trunc_scale=1.0,
        )  # fmt: skip
        cases.append({
            "name": name, "values": clipped.tolist(), "wealth": wealth, "mixture": mixture,
            "interval": [(2.0 * BOUND * np.asarray(side) - BOUND).tolist() for side in (low, high)],
            "interval_of_one": [(2.0 * BOUND * np.asarray(side) - BOUND).tolist() for side in (low_one, high_one)],
        })  # fmt: skip
    found = {"made_by": "confseq 0.0.11", "bound": BOUND, "alpha": ALPHA, "grid": 2.0 * BOUND / BREAKS,
             "shares": SHARES, "means": NULL_MEANS, "cases": cases}  # fmt: skip
    Path(__file__).with_suffix(".json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
