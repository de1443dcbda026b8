"""What the forms of Prefect offer for a symbol: those of the universe, as a drop-down that follows it."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefect import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.exceptions import ObjectNotFound

from flows import universe
from flows.support.installation import Installation

DEPLOYMENTS = ("monitor",)  # those with a parameter `symbol`


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


def offer_symbols(installation: Installation) -> None:
    """Offer the symbols of the universe in the forms, where the server offers others.

    What the server has decides: deployments that are registered again offer none. A symbol that a person made the
    default of a deployment stays among them. Raises what the Prefect client raises where its server does not answer.
    """
    present = universe.symbols(installation)
    if not present:
        return
    with get_client(sync_client=True) as client:
        for name in DEPLOYMENTS:
            try:
                found = client.read_deployment_by_name(f"{name}/{name}")
            except ObjectNotFound:  # it is registered in a moment
                continue
            default = found.parameters.get("symbol")
            choices = dict.fromkeys([*present, *([default] if default else [])])
            schema = with_symbols(found.parameter_openapi_schema, list(choices))
            if schema != found.parameter_openapi_schema:
                client.update_deployment(found.id, DeploymentUpdate(parameter_openapi_schema=schema))
