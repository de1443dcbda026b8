"""Names of flow runs: what they do, the market day of the data they rest on, and the start of the hash of these data.

As in "train validator · 2024-12-30 · aae8135b", and once there is a version "train validator 3 · …".
"""

from collections.abc import Callable, Iterable, Mapping

import httpx
from prefect import get_client
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

from flows.support.installation import Installation, open_installation
from flows.support.progress import report_progress
from pipelines import versioning
from pipelines.errors import StateError, UnreadableFile

HASH_SHOWN = 8  # characters


def run_name(pattern: str) -> Callable[[], str]:
    """Return what Prefect calls for the name of a run when it starts.

    pattern  with parameters of the flow in braces, as in "train {families}"; those that are not given are left out
    """

    def name() -> str:
        """Return the name of the run that is starting."""
        given = {key: words(value) for key, value in flow_run.parameters.items()}
        return on_data(" ".join(pattern.format_map(given).split()), open_installation())

    return name


def words(value: object) -> str:
    """Return the value of a parameter as it stands in a name: a list with commas, none as nothing."""
    if value is None:
        return ""
    if isinstance(value, Iterable) and not isinstance(value, str | Mapping):
        return ", ".join(str(each) for each in value)
    return str(value)


def on_data(what: str, installation: Installation) -> str:
    """Return `what` with market day and hash of the newest data version; alone before the first one.

    The market day is that of the newest bar. A damaged file is the flow's to report: it reads the same one.
    """
    try:
        markets = installation.data_version().markets
        data_hash = versioning.data_hash(installation.workspace)
    except (StateError, UnreadableFile):
        return what
    day = max(str(facts["last"])[:10] for facts in markets.values())
    return f"{what} · {day} · {data_hash[:HASH_SHOWN]}"


def with_versions(verb: str, versions: Mapping[str, str]) -> str:
    """Return what a run did with new versions, as "train validator 3, regime 2"; the verb alone without any."""
    return f"{verb} {', '.join(f'{family} {version}' for family, version in versions.items())}".strip()


def rename_run(what: str, installation: Installation) -> None:
    """Give the present flow run the name `on_data` makes of `what`; outside of a flow run nothing is named.

    Where Prefect refuses it the run goes on under its first name: what it made stands.
    """
    if not flow_run.id:
        return
    name = on_data(what, installation)
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_name(flow_run.id, name)
    except (httpx.HTTPError, PrefectException) as error:
        report_progress(f"{name}: this run keeps its first name, for Prefect refused this one: {error}")
