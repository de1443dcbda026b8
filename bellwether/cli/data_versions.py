"""`bellwether data`: the data versions of this installation, and the market data of a clone."""

from bellwether.cli.options import AsJson, new_group
from bellwether.cli.output import emit, line, progress_of

versions = new_group()


@versions.command("restore")
def data_restore(as_json: AsJson = False) -> None:
    """Bring data/ of this clone, as data.dvc describes it.

    From a remote, or simulated again. Then `dvc status`, `dvc repro` and every other command work in the clone.
    """
    from dataclasses import asdict

    from bellwether.operations.restore_data import restore
    from pipelines.settings import settings

    found = restore(settings(), progress=progress_of(as_json))
    if as_json:
        emit(asdict(found))
        return
    line(f"data {found.data_hash[:12]}: {found.match}, {found.came_from}")
    line("Next: `dvc repro` computes features, labels and models; `dvc pull` brings them where your remote holds them.")
