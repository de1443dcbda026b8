"""Numba's hooks: machine code in folders named by content, of which only sealed files are read.

Imported at the first call of a kernel, as numba is (`pipelines.compiled`).
"""

import io
import logging
import pickle
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache, IndexDataCacheFile, UserProvidedCacheLocator

from pipelines.compiled import cache_dir, digest_of, locked, read_sealed, write_sealed

log = logging.getLogger("bellwether.kernels")


class ByContent(UserProvidedCacheLocator):
    """Name the folder of a function's machine code by content."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        """Name the folder for a function of `py_file`."""
        super().__init__(py_func, py_file)
        source = Path(py_file)
        self._cache_path = str(cache_dir() / f"{source.stem}_{digest_of(source)}")

    def ensure_cache_path(self) -> None:
        """Create nothing: the writer does, so that compiled code can be read from a read-only disk."""


class SealedFiles(IndexDataCacheFile):
    """Read and write the index and data files of one function; only sealed files are unpickled."""

    def save(self, key: Any, data: Any) -> None:
        """Store an entry; if the disk refuses it, the next process compiles again and this one goes on."""
        try:
            with locked(cache_dir()):  # two at once would give the same data file to two signatures
                super().save(key, data)
        except OSError as error:
            log.warning("%s was compiled and cannot be stored: %s", self._index_name, error)

    def _load_index(self) -> dict[Any, str]:
        """Return signature → data file; empty for another numba, another source, or an unsealed index."""
        content = self._read(self._index_name)
        if content is None:
            return {}
        stream = io.BytesIO(content)
        if pickle.load(stream) != self._version:  # noqa: S301 (sealed, see above)
            return {}
        stamp, overloads = pickle.load(stream)  # noqa: S301
        return dict(overloads) if stamp == self._source_stamp else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        """Write signature → data file, and its seal."""
        version = pickle.dumps(self._version, protocol=-1)
        self._write(self._index_name, version + self._dump((self._source_stamp, overloads)))

    def _load_data(self, name: str) -> Any:
        """Return the unpickled machine code of a data file."""
        content = self._read(name)
        if content is None:
            raise FileNotFoundError(name)  # numba treats it as a miss
        return pickle.loads(content)  # noqa: S301

    def _save_data(self, name: str, data: Any) -> None:
        """Write the machine code of a data file, and its seal."""
        self._write(name, self._dump(data))

    def _name(self, name: str) -> str:
        """Return the name of a file relative to the cache folder."""
        return f"{Path(self._cache_path).name}/{name}"

    def _read(self, name: str) -> bytes | None:
        """Return the bytes of a sealed file, else None."""
        return read_sealed(Path(self._cache_path).parent, self._name(name))

    def _write(self, name: str, content: bytes) -> None:
        """Write a file and its seal; `save` holds the lock."""
        write_sealed(Path(self._cache_path).parent, self._name(name), content)


class SealedCache(FunctionCache):
    """Cache one function as numba does, with sealed files."""

    def __init__(self, py_func: Any) -> None:
        """Put sealed files in place of numba's own."""
        super().__init__(py_func)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file: Any = SealedFiles(self._cache_path, self._impl.filename_base, stamp)
