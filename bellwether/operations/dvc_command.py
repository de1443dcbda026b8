"""The command `dvc` of this environment: DVC's own, and one more sentence where a clone has no data yet."""

import sys
from pathlib import Path

from pipelines import versioning

LACKS_DATA = (
    "data/ of this clone is not here yet: `bellwether data restore` brings it from a remote or simulates it again; "
    "then DVC's commands work"
)


def main() -> int:
    """Run DVC with the arguments of the command line; return its exit code.

    DVC looks at `data.dvc` before any stage, and its error names the folder and not what brings it.
    """
    code = versioning.command(sys.argv[1:])
    if code and lacks_data(Path.cwd()):
        print(LACKS_DATA, file=sys.stderr)
    return code


def lacks_data(folder: Path) -> bool:
    """Return whether a folder is in a clone of this repository whose data were not restored."""
    root = next((each for each in (folder, *folder.parents) if (each / "data.dvc").is_file()), None)
    return root is not None and (root / "bellwether").is_dir() and not (root / "data").is_dir()
