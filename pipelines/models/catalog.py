"""Every family that can be trained. A new one is a module with a Recipe and a line here."""

from pipelines.errors import UnknownName
from pipelines.models.base import Recipe
from pipelines.models.pattern import PATTERN
from pipelines.models.predictor import PREDICTOR
from pipelines.models.regime.recipe import REGIME
from pipelines.models.validator import VALIDATOR

# in the order in which they are fitted and judged: the longest fit first, and who acts after those it listens to
RECIPES: dict[str, Recipe] = {each.family: each for each in (PREDICTOR, PATTERN, REGIME, VALIDATOR)}


def recipe(family: str) -> Recipe:
    if family not in RECIPES:
        raise UnknownName(f"no model family {family!r} to train; known: {', '.join(RECIPES)}")
    return RECIPES[family]
