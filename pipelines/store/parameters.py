"""Parameters by their digest: what decisions were made by, so that they can be made again after params.yaml changed."""

from datetime import datetime

import sqlalchemy as sa

from pipelines.errors import StateError
from pipelines.migrations import tables as t
from pipelines.store.chain_lines import sha256_of
from pipelines.store.engine import Database

_ADD = sa.text("INSERT INTO parameters (digest, content, at) VALUES (:digest, :content, :at) ON CONFLICT DO NOTHING")
_ADD = _ADD.bindparams(sa.bindparam("at", type_=t.UtcTime))


class ParameterStore(Database):
    """Store sets of parameters."""

    def add_parameters(self, digest: str, content: str, at: datetime) -> None:
        """Store a set of parameters under its digest; the same a second time changes nothing."""
        if self.parameters(digest) is None:
            with self.writing() as connection:
                connection.execute(_ADD, {"digest": digest, "content": content, "at": at})

    def parameters(self, digest: str) -> str | None:
        """Return the parameters of a digest, None if they were never stored. Raises StateError if they were changed."""
        with self._engine.connect() as connection:
            found = connection.scalar(sa.select(t.parameters.c.content).where(t.parameters.c.digest == digest))
        if found is not None and sha256_of(found) != digest:
            raise StateError(f"the stored parameters {digest[:12]} are not those of their digest: someone changed them")
        return None if found is None else str(found)
