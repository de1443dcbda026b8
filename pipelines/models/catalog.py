"""Every model family that can be trained. A new one is a module with a ModelFamily and a line here."""

from pipelines.errors import UnknownName
from pipelines.models.base import ModelFamily
from pipelines.models.pattern import PATTERN
from pipelines.models.predictor import PREDICTOR
from pipelines.models.regime.model_family import REGIME
from pipelines.models.validator import VALIDATOR

# in the order of fitting and evaluation: the longest fit first, the decision family after the families it uses
MODEL_FAMILIES: dict[str, ModelFamily] = {each.family: each for each in (PREDICTOR, PATTERN, REGIME, VALIDATOR)}


def model_family(family: str) -> ModelFamily:
    """Return the family named `family`. Raises UnknownName, listing the known ones."""
    if family not in MODEL_FAMILIES:
        raise UnknownName(f"no model family {family!r} to train; use one of {', '.join(MODEL_FAMILIES)}")
    return MODEL_FAMILIES[family]
