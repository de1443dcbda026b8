"""Every family that can be trained. A new one is a module with a ModelFamily and a line here."""

from pipelines.errors import UnknownName
from pipelines.models.base import ModelFamily
from pipelines.models.pattern import PATTERN
from pipelines.models.predictor import PREDICTOR
from pipelines.models.regime.model_family import REGIME
from pipelines.models.validator import VALIDATOR

# in the order in which they are fitted and judged: the longest fit first, and who acts after those it listens to
MODEL_FAMILIES: dict[str, ModelFamily] = {each.family: each for each in (PREDICTOR, PATTERN, REGIME, VALIDATOR)}


def model_family(family: str) -> ModelFamily:
    if family not in MODEL_FAMILIES:
        raise UnknownName(f"no model family {family!r} to train; known: {', '.join(MODEL_FAMILIES)}")
    return MODEL_FAMILIES[family]
