"""Make a home ready before its services start in containers: `python -m bellwether.operations.launch.prepare PGPASS`.

What `bellwether up` does for the services it starts itself: folders, the key, and the password file of the databases,
which libpq reads only where nobody else may; a secret that an engine mounts is open to a group or to all. Then the
kernels, whose machine code is that of this CPU. Run again, it makes what is missing and takes a new password over.
"""

import sys
from pathlib import Path

from bellwether.operations import compile_kernels
from flows.support import stores
from flows.support.processes import HOME_FOLDERS, write_atomic
from pipelines.permissions import restrict
from pipelines.settings import Settings, settings
from serving.service import keys


def prepare(where: Settings, passwords: Path) -> None:
    """Make the folders and the keys of a home, and take the password file over."""
    file = stores.password_file(where)
    for folder in (*(where.home / name for name in HOME_FOLDERS), file.parent):
        folder.mkdir(parents=True, exist_ok=True)
    keys.home_key(where)
    keys.chain_key(where)
    write_atomic(file, passwords.read_text())


def main() -> None:
    """Prepare the home of our settings and compile the kernels."""
    if len(sys.argv) != 2:
        sys.exit("name the password file of the databases, in libpq's format")
    restrict()
    prepare(settings(), Path(sys.argv[1]))
    compile_kernels.main()


if __name__ == "__main__":
    main()
