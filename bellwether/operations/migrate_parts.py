"""The parts of a home that move: ledger, databases of MLflow and Prefect, MLflow's artifacts, data versions.

Each part measures what there is, finds whether the target has the same already, and moves it. A database moves in one
transaction, a file under another name until it is complete: a move that was cut short leaves no half of anything.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Protocol

from bellwether.operations import migrate_files as files
from flows.support import ledger_chain, processes
from flows.support.processes import Progress
from pipelines import store
from pipelines.backup import encode_row, summarise
from pipelines.errors import ChainBroken, ServiceDown, StateError, WouldOverwrite
from pipelines.settings import Settings
from pipelines.store import dump, tool_tables
from pipelines.store.tool_tables import shown
from serving.service.home_store import open_store, read_anchors

PROXIED = "mlflow-artifacts:"  # how MLflow names what its server keeps: the same wherever the server puts it
# table, column → of MLflow, where an address of artifacts is written
ADDRESSES = (
    ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"), ("model_versions", "source"),
)  # fmt: skip


class Part(Protocol):
    """One part of a home, with the places it moves between as they are shown."""

    @property
    def name(self) -> str:
        """Return what it is."""

    @property
    def source(self) -> str:
        """Return the place it moves from."""

    @property
    def target(self) -> str:
        """Return the place it moves to."""

    def measure(self) -> dict[str, int]:
        """Return what the source holds, in numbers; empty if nothing."""

    def is_moved(self) -> bool:
        """Return whether the target holds the same already. Raises WouldOverwrite if it holds anything else."""

    def move(self, progress: Progress) -> dict[str, Any]:
        """Copy what the target lacks, verify it, and return what was moved."""


def _refuse(target: str, held: dict[str, int], what: str) -> None:
    """Raise WouldOverwrite for a target with other data."""
    counts = ", ".join(f"{n:,} {name}" for name, n in list(held.items())[:4])
    raise WouldOverwrite(
        f"{target} holds other data than {what}: {counts}. Nothing was moved and nothing is overwritten. If this "
        "home uses the target already, there is nothing to do; otherwise move the target away or name an empty one."
    )


@dataclass(frozen=True, slots=True)
class Ledger:
    """The ledger, moved as a backup and its restore move it, without the file between them."""

    from_: Settings
    to: Settings
    name: str = "ledger"

    @property
    def source(self) -> str:
        """Return the place it moves from."""
        return shown(self.from_.store)

    @property
    def target(self) -> str:
        """Return the place it moves to."""
        return shown(self.to.store)

    def measure(self) -> dict[str, int]:
        """Return table → rows."""
        return store.nonempty_tables(self.from_.store)

    def is_moved(self) -> bool:
        """Return whether both ledgers hold the same rows. Raises WouldOverwrite if the target holds others."""
        held = store.nonempty_tables(self.to.store)
        if held:
            open_store(self.from_).close()  # brings it to this release's schema, as every command does
        if held and _stored(self.from_) != _stored(self.to):
            _refuse(self.target, held, f"the ledger in {self.source}")
        return bool(held)

    def move(self, progress: Progress) -> dict[str, Any]:
        """Verify the chain, load every table in one transaction, compare digests, and verify the chain again.

        Raises  ChainBroken if the ledger is not as it was written: nothing was moved then
        """
        lines = self._verify(self.from_)
        if not self.is_moved():
            progress("ledger: copying")
            with store.open_dump(self.from_.store) as source:
                dump.load(self.to.store, source.schema, source.rows, lambda loaded: _require_same(source, loaded))
        if self._verify(self.to) != lines:
            raise StateError(f"{self.target} has another chain than {self.source}. Repeat the command.")
        rows = store.nonempty_tables(self.to.store)
        if rows != self.measure():
            raise StateError(f"{self.target} has other counts than {self.source}. Repeat the command.")
        return {"rows": rows, "chain_lines": lines}

    @staticmethod
    def _verify(where: Settings) -> int:
        """Return the number of lines of the chain. Raises ChainBroken unless all rows are as it states."""
        opened = open_store(where)
        try:
            found = opened.verify_chain(read_anchors(where.home))
        finally:
            opened.close()
        if found.faults:
            raise ChainBroken(
                f"the ledger in {shown(where.store)} is not as it was written: {ledger_chain.describe(found)}. It does "
                "not move. `bellwether verify --all` names everything; `bellwether verify --accept --reason WHY` goes "
                "on with it."
            )
        return found.lines


def _stored(where: Settings) -> dict[str, Any]:
    """Return what each table of a ledger holds, as a backup's manifest states it."""
    with store.open_dump(where.store) as opened:
        return _digests(opened)


def _digests(opened: dump.Dump) -> dict[str, Any]:
    """Return table → columns, count and digest of a dump."""
    return {name: summarise(of, map(encode_row, opened.rows(name))) for name, of in opened.columns.items()}


def _require_same(source: dump.Dump, loaded: dump.Dump) -> None:
    """Raise StateError unless both dumps hold the same rows."""
    before, after = _digests(source), _digests(loaded)
    if odd := [name for name in before if before[name] != after.get(name)]:
        raise StateError(f"{odd[0]} of the ledger is not read back as it was written. Nothing was moved.")


@dataclass(frozen=True, slots=True)
class ToolDatabase:
    """The database of MLflow or Prefect: its tables made by the tool itself, then every row copied."""

    name: str
    from_url: str
    to_url: str
    to: Settings

    @property
    def source(self) -> str:
        """Return the place it moves from."""
        return shown(self.from_url)

    @property
    def target(self) -> str:
        """Return the place it moves to."""
        return shown(self.to_url)

    def measure(self) -> dict[str, int]:
        """Return table → rows."""
        return tool_tables.row_counts(self.from_url)

    def is_moved(self) -> bool:
        """Return whether both hold the same rows. Raises WouldOverwrite if the target holds others."""
        held = tool_tables.row_counts(self.to_url)
        if held and (not self._same_tables() or tool_tables.differences(self.from_url, self.to_url)):
            _refuse(self.target, held, self.source)
        return bool(held)

    def move(self, progress: Progress) -> dict[str, Any]:
        """Make the tables with the tool's own command, copy every row, and compare.

        Raises  StateError if the tables differ: the source is of another release of the tool
        """
        if self.is_moved():
            return {"rows": self.measure()}
        if not self._same_tables():
            progress(f"{self.name}: making its tables")
            self._make_tables()
        if not self._same_tables():
            raise StateError(
                f"{self.source} has other tables than this release of {self.name} makes. Start the home once as it is "
                "with `bellwether up`, which brings them to this release, then `bellwether down` and repeat."
            )
        progress(f"{self.name}: copying rows")
        copied = tool_tables.copy(self.from_url, self.to_url)
        return {"rows": {name: n for name, n in copied.items() if name not in tool_tables.OWN_ROWS}}

    def _same_tables(self) -> bool:
        """Return whether both have the same tables with the same columns."""
        return tool_tables.columns(self.from_url) == tool_tables.columns(self.to_url)

    def _make_tables(self) -> None:
        """Run the tool's own migration on the target. Raises ServiceDown with the end of its output."""
        env, words = (
            {**os.environ, **processes.environment(self.to)},
            ["prefect", "server", "database", "upgrade", "-y"],
        )
        tool_tables.make_folder(self.to_url)
        if self.name == "mlflow":
            url, password = tool_tables.without_password(self.to_url)
            if password is not None:  # a command line is open to every user
                env["PGPASSWORD"] = password
            words = ["mlflow", "db", "upgrade", url]
        done = subprocess.run(
            [sys.executable, "-m", *words], env=env, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ServiceDown(f"`{words[0]}` made no tables in {self.target}: {done.stdout.strip()[-600:]}")


@dataclass(frozen=True, slots=True)
class Files:
    """Files in a folder or a bucket."""

    name: str
    source: str
    target: str

    def measure(self) -> dict[str, int]:
        """Return the number of files and their bytes."""
        sizes = files.place(self.source).sizes()
        return {"files": len(sizes), "bytes": sum(sizes.values())} if sizes else {}

    def is_moved(self) -> bool:
        """Return whether the target has all files. Raises WouldOverwrite if it has any others."""
        source, target = files.place(self.source), files.place(self.target)
        if odd := files.other_data(source, target):
            _refuse(self.target, {f"files, such as {odd[0]}": len(odd)}, self.source)
        return len(source.sizes()) == len(target.sizes())

    def move(self, progress: Progress) -> dict[str, Any]:
        """Copy the files that the target lacks, and compare all."""

        def show(n: int, of: int) -> None:
            """Show how many files are copied, a hundred at a time."""
            if n % 100 == 0 or n == of:
                progress(f"{self.name}: {n:,} of {of:,} files")

        return dict(files.copy(files.place(self.source), files.place(self.target), show))


def addresses_elsewhere(mlflow_url: str) -> dict[str, int]:
    """Return beginning → number of addresses in MLflow's rows that are not served by its server: they do not move."""
    found: dict[str, int] = {}
    for table, column in ADDRESSES:
        for value in tool_tables.values_of(mlflow_url, table, column):
            if not value.startswith((PROXIED, "runs:", "models:")):
                scheme = value.split(":", 1)[0] if ":" in value else "a path"
                found[scheme] = found.get(scheme, 0) + 1
    return found


def parts_of(from_: Settings, to: Settings) -> list[Part]:
    """Return the parts that move; one that is at the same place in both profiles does not."""
    every: list[Part] = [
        Ledger(from_, to),
        ToolDatabase("mlflow", from_.mlflow_store, to.mlflow_store, to),
        ToolDatabase("prefect", from_.prefect_store, to.prefect_store, to),
        Files("artifacts", from_.mlflow_artifacts, to.mlflow_artifacts),
        Files("data versions", from_.remote, to.remote),
    ]
    return [part for part in every if part.source != part.target]
