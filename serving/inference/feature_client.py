"""Ask the decision service, which alone holds live symbols, for the rows that its models see."""

import httpx

from pipelines.contracts import JsonObject
from pipelines.errors import InputError, ServiceDown, StateError, UnknownName

TIMEOUT_S = 5.0  # of a call whose service allows itself 10
_ERRORS = {400: InputError, 404: UnknownName, 409: StateError}


class FeatureClient:
    """Hold a connection to `/features` of one decision service, on one event loop. A read: it needs no key."""

    def __init__(self, url: str) -> None:
        """Connect to the decision service at this address."""
        self.url = url
        self._http = httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S)

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def features(self, symbol: str, family: str) -> JsonObject:
        """Return the answer of `/features` for one family.

        Raises what the service refused it with, in its words; ServiceDown where it does not answer.
        """
        try:
            response = await self._http.get("/features", params={"symbol": symbol, "family": family})
            content: JsonObject = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ServiceDown(
                f"the decision service, which holds the newest row of {symbol}, does not answer at {self.url}: "
                f"{error or type(error).__name__}. Start it with `bellwether up`, or send rows, features or windows"
            ) from error
        if response.status_code in _ERRORS:
            raise _ERRORS[response.status_code](str(content["error"]))
        if response.status_code != 200:
            raise ServiceDown(f"{self.url}/features answered {response.status_code}: {response.text[:300]}")
        return content
