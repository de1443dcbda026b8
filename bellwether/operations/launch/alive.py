"""Exit with 0 while a service shows that it works: `python -m bellwether.operations.launch.alive flows`.

A health check of containers, for those that listen on no port; the process table says what shows it.
"""

import sys

from flows.support.processes import is_responding
from flows.support.service_table import POOL, SERVICES
from pipelines.settings import settings


def main() -> None:
    """Look once."""
    known = (*SERVICES, *POOL)
    if len(sys.argv) != 2 or sys.argv[1] not in known:
        sys.exit(f"name one service: {', '.join(known)}")
    sys.exit(0 if is_responding(settings(), sys.argv[1]) else 1)


if __name__ == "__main__":
    main()
