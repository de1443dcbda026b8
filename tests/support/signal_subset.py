"""Some groups of SIGNALS: their columns of the fold that training and serving run, already compiled."""

import numpy as np

from pipelines.context_layout import NO_CONTEXT
from pipelines.contracts import NO_BOOK
from pipelines.signals.catalog import SIGNALS


class SignalSubset:
    """Provide `run`, `step` and the catalogue of some groups; a state is that of the whole fold."""

    def __init__(self, *names):
        self.groups = tuple(group for group in SIGNALS.groups if group.name in names)
        self.catalogue = tuple(column for group in self.groups for column in group.columns)
        self.columns = tuple(column.name for column in self.catalogue)
        self.index = {name: i for i, name in enumerate(self.columns)}
        self._at = np.array([SIGNALS.index[name] for name in self.columns])
        self.fresh, self.dump, self.load = SIGNALS.fresh, SIGNALS.dump, SIGNALS.load
        assert len(self.groups) == len(names)

    def run(self, bars, books=None, contexts=None, state=None):
        return SIGNALS.run(bars, books, contexts, state)[:, self._at]

    def step(self, state, bar, book=NO_BOOK, context=NO_CONTEXT):
        return SIGNALS.step(state, bar, book, context)[self._at]
