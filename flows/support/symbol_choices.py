"""What the forms of Prefect offer for a symbol: those of the universe, as a drop-down that follows it."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from prefect import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.exceptions import ObjectNotFound

from flows import universe
from flows.support.installation import Installation

DEPLOYMENTS = ("monitor",)  # those with a parameter `symbol`
AGAIN_S = 60.0  # after which a change made on the server is noticed


def with_symbols(schema: Mapping[str, Any], symbols: Sequence[str]) -> dict[str, Any]:
    """Return the schema of a deployment's parameters in which `symbol` is one of these, or none where it may be."""
    field = schema["properties"]["symbol"]
    choices = {"type": "string", "enum": list(symbols)}
    if "anyOf" in field:
        kinds = [choices if kind.get("type") == "string" else kind for kind in field["anyOf"]]
        field = {**field, "anyOf": kinds}
    else:
        field = {**field, **choices}
    return {**schema, "properties": {**schema["properties"], "symbol": field}}


class SymbolForms:
    """Keep the forms up to date. The server is asked when the universe changes, and else once in AGAIN_S seconds."""

    def __init__(self, installation: Installation) -> None:
        """Start without having asked."""
        self._installation = installation
        self._offered: tuple[str, ...] = ()
        self._asked = -math.inf

    def follow(self) -> None:
        """Offer the symbols of the universe if it is time. Raises as `offer_symbols`."""
        present, at = universe.symbols(self._installation), time.monotonic()
        if present != self._offered or at - self._asked > AGAIN_S:
            self._offered = present if offer_symbols(self._installation) else ()
            self._asked = at


def offer_symbols(installation: Installation) -> bool:
    """Offer the symbols of the universe in the forms, where the server offers others.

    What the server has decides: deployments that are registered again offer none. A symbol that a person made the
    default of a deployment stays among them. Return whether every deployment is registered, and so offers them. Raises
    what the Prefect client raises where its server does not answer.
    """
    present = universe.symbols(installation)
    if not present:
        return True
    complete = True
    with get_client(sync_client=True) as client:
        for name in DEPLOYMENTS:
            try:
                found = client.read_deployment_by_name(f"{name}/{name}")
            except ObjectNotFound:  # it is registered in a moment
                complete = False
                continue
            default = found.parameters.get("symbol")
            choices = dict.fromkeys([*present, *([default] if default else [])])
            schema = with_symbols(found.parameter_openapi_schema, list(choices))
            if schema != found.parameter_openapi_schema:
                client.update_deployment(found.id, DeploymentUpdate(parameter_openapi_schema=schema))
    return complete
