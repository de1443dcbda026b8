"""The inner fold that chooses a half-life is purged: no label that ends in it, or within the embargo, trains it."""

from dataclasses import replace

import numpy as np

from pipelines.models.base import Dataset
from pipelines.models.validator import half_life
from pipelines.settings import load_params

PARAMS = load_params()
PARAMS = PARAMS.model_copy(update={"validator": PARAMS.validator.model_copy(update={"trees": 10, "depth": 2})})
N, STEP_S, LIFE, EMBARGO = 1_000, 3600.0, 20, 30  # events of an hour, whose outcome takes twenty; hours of embargo


def test_a_half_life_reads_no_label_that_overlaps_the_events_it_is_chosen_on():
    rng = np.random.default_rng(4)
    rows, known = rng.normal(size=(N, 2)), STEP_S * np.arange(N)
    y = (rng.random(N) < 1 / (1 + np.exp(-rows[:, 0]))).astype(float)
    data = Dataset(
        ("signal", "noise"), lambda at: rows[at], y, np.ones(N), np.ones(N), known, known + LIFE * STEP_S, np.arange(N)
    )
    first = int(N * (1.0 - PARAMS.validator.half_life_tail))
    near = (np.arange(N) >= first - LIFE - EMBARGO) & (np.arange(N) < first)
    chosen, again = (
        half_life(replace(data, y=labels), PARAMS, EMBARGO * STEP_S) for labels in (y, np.where(near, 1.0 - y, y))
    )
    assert len(chosen.tried) == len(PARAMS.validator.decay_half_lives_events)
    assert again == chosen
