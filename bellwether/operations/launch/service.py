"""Become one service of the Procfile, without a supervisor: `python -m bellwether.operations.launch.service mlflow`.

For containers, one a service (deploy/compose, deploy/kubernetes), whose engine starts again what ends. Command and
variables are those of `bellwether up`.
"""

import os
import sys

from flows.support.processes import environment, parse_procfile
from pipelines.permissions import restrict
from pipelines.settings import ROOT, settings


def main() -> None:
    """Replace this process by the service; exit with one sentence if the Procfile has no such line."""
    commands = parse_procfile(ROOT / "Procfile")
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(f"name one service: {', '.join(commands)}")
    restrict()
    os.chdir(ROOT)
    command = commands[sys.argv[1]]
    os.execve("/bin/sh", ["/bin/sh", "-c", command], {**os.environ, **environment(settings())})


if __name__ == "__main__":
    main()
