"""Pages and figures: chart, heatmap, signals, stars, stress."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from bellwether.cli.connection import require_services
from bellwether.cli.options import AsJson, NewestMarket, OneMarket, Page, new_group
from bellwether.cli.output import emit, err, line, paragraph, table
from pipelines.settings import load_params, settings

app = new_group()


def _page(to: Path | None, kind: str, name: str) -> Path:
    """Return the page to write: the given one, or one under reports."""
    from pipelines.data.symbols import slug_of

    return to or settings().home / "reports" / f"{kind}-{slug_of(name)}.html"


@app.command()
def chart(
    symbol: NewestMarket = None,
    last: Annotated[int, typer.Option(help="Decision bars to draw.", min=10)] = 300,
    to: Page = None,
    as_json: AsJson = False,
) -> None:
    """Draw a market with signals and decisions.

    Candles, the onset of each signal, trades with stop and target, and regimes, as one HTML page.
    """
    from bellwether.reports.chart import gather, to_dict, write
    from flows.support.installation import open_installation

    drawn = gather(open_installation(), symbol, last)
    found = to_dict(drawn) | {"page": str(write(drawn, _page(to, "chart", drawn.symbol)))}
    if as_json:
        emit(found)
        return
    line(f"{drawn.symbol}: {found['bars']:,} bars, {len(found['signals']):,} signals, "
         f"{len(found['decisions'])} trades, drawn in {found['page']}")  # fmt: skip


@app.command()
def heatmap(
    recording: Annotated[Path, typer.Argument(help="Folder of a recorded order book.", exists=True, file_okay=False)],
    to: Page = None,
    as_json: AsJson = False,
) -> None:
    """Draw the heatmap of a recorded order book.

    The last 50 snapshots of 100 levels, with liquidity walls, clusters and depth, as one HTML page.
    """
    from bellwether.reports.heatmap import to_dict, write
    from pipelines.data.orderbook.tape import latest_heatmap
    from pipelines.data.readers.recordings import replay_recording
    from pipelines.data.sources import BOOK_EVERY_S

    drawn = latest_heatmap(replay_recording(recording, BOOK_EVERY_S).tape)
    found = to_dict(drawn) | {"page": str(write(drawn, recording.name, _page(to, "heatmap", recording.name)))}
    if as_json:
        emit(found)
        return
    line(f"{recording.name}: {found['snapshots']} snapshots, imbalance {found['imbalance']:+.2f}, "
         f"{len(found['liquidity_walls'])} liquidity walls, {len(found['clusters'])} clusters, "
         f"drawn in {found['page']}")  # fmt: skip


@app.command()
def signals(
    symbol: NewestMarket = None,
    score: Annotated[bool, typer.Option("--score", help="Score each signal on the snapshot; table and page.")] = False,
    to: Page = None,
    as_json: AsJson = False,
) -> None:
    """List signals with their inputs and scores.

    Each signal's status, the inputs it lacks, its onsets and the last of them. --score measures its net return.
    """
    from bellwether.reports import signals as report
    from flows.support.installation import open_installation

    installation = open_installation()
    if not score:
        found = report.listing(installation, symbol)
        emit(found) if as_json else show_signals(found)
        return
    name, scored = report.score(installation, symbol)
    file = report.write(name, scored, _page(to, "signals", name))
    if as_json:
        emit({"symbol": name, **scored.to_dict(), "page": str(file)})
        return
    table(
        f"{name}: {scored.tested} signals on {scored.bars:,} bars of {scored.weeks:.1f} weeks; buying at every bar: "
        f"{report.format_estimate(scored.market_bps)} bps over {scored.horizon_bars} bars",
        list(report.SCORE_COLUMNS),
        report.score_rows(scored),
    )
    above = ", ".join(scored.above()) or "none"
    paragraph(f"net return above zero with the whole interval: {above}; of {scored.tested} tested, "
         f"{scored.tested * 0.025:.1f} would be by chance. Drawn in {file}")  # fmt: skip


def show_signals(found: Mapping[str, Any]) -> None:
    """Print the list of signals, by row of the registry."""
    of = found["symbol"]
    about = f"{of}: {found['bars']:,} bars to {found['to']} UTC" if of else "signals; nothing was ingested yet"
    table(
        about,
        ["row", "signal", "category", "onsets", "last (UTC)", "status", "what"],
        [
            [
                s["row"],
                s["signal"],
                s["category"],
                s["onsets"],
                s["last"],
                s["status"].removeprefix("unavailable: "),
                s["description"],
            ]
            for s in found["signals"]
        ],
    )


@app.command()
def stars(
    symbol: NewestMarket = None,
    path: Annotated[Path | None, typer.Option(help="Measure on this Parquet, CSV or zip file instead.")] = None,
    context: Annotated[
        list[Path] | None, typer.Option(help="With --path: file of context or folder of a recorded book.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the stars of the unicorn rating.

    How often each of the 21 stars is true, and its lift in basis points with a 95 % interval.
    """
    from bellwether.reports import stars as report
    from flows.support.installation import now, open_installation

    if path is None:
        found = report.of_snapshot(open_installation(), symbol)
    else:
        found = report.of_file(path, symbol, context or [], load_params(settings().params_file), now())
    if as_json:
        emit(found.to_dict())
        return
    measured = found.contributions
    table(
        f"{found.symbol}: {measured.bars:,} bars of {found.timeframe}, {found.first} to {found.last} UTC; lift: mean "
        f"return over {measured.horizon_bars} bars on the star's side, true less false",
        list(report.COLUMNS),
        report.rows(measured),
    )
    paragraph(report.verdict(measured))


@app.command()
def stress(
    crises: Annotated[
        Path | None, typer.Option(help="Parquet, CSV or zip file of hourly or finer bars that hold the crises.")
    ] = None,
    equity: Annotated[
        float | None,
        typer.Option(min=1.0, help="In the market's quote currency: the cost of getting out depends on it."),
    ] = None,
    symbol: OneMarket = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only the table: no server, no page.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stress the largest portfolio the limits allow.

    Its loss in recorded crises, resampled histories, correlation breakdowns and thin markets.
    """
    from bellwether.reports.stress import columns, rows
    from flows.support.installation import open_installation
    from flows.support.progress import progress_display
    from pipelines.data.readers.files import check_path

    installation = open_installation()
    installation.meta_of(symbol)  # raises before the first ingest, with the command to run
    if crises is not None:
        check_path(crises)
    if not dry_run:
        require_services("mlflow", "prefect")
    from flows import stress as flow

    with progress_display(err):
        found = (
            flow.study(installation, crises, equity, symbol).to_dict()
            if dry_run
            else flow.stress(str(crises.resolve()) if crises else None, equity, symbol)
        )
    if as_json:
        emit(found)
        return
    table(f"{found['about']}; drawdown limit {found['drawdown_limit']:.0%}", columns(found), rows(found))
    for text in found["verdict"]:
        paragraph(text)
    if not dry_run:
        line(f"drawn in {found['page']}\nin MLflow: {found['mlflow']}")


@app.command()
def portfolio(
    of: Annotated[str, typer.Option(help="Returns of the markets, or of the decisions in them.")] = "markets",
    method: Annotated[str | None, typer.Option(help="Whose trades to propose; portfolio.method by default.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only the table: no server, no file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Allocate among the symbols of the universe.

    Every method walked forward after costs and compared with 1/N, what each symbol added, and the trades of one method
    from the positions held now.
    """
    from bellwether.reports import portfolio as shown
    from flows import portfolio as allocation
    from flows.support.installation import open_installation
    from flows.support.progress import progress_display

    installation = open_installation()
    installation.meta()  # raises before the first ingest, with the command to run
    if not dry_run:
        require_services("prefect")
    with progress_display(err):
        found = (
            allocation.study(installation, shown.what(of), method).to_dict()
            if dry_run
            else allocation.portfolio(shown.what(of), method)
        )
    if as_json:
        emit(found)
        return
    table(shown.title(found), shown.COLUMNS, shown.rows(found))
    for text in shown.notes(found):
        paragraph(text)
    table(f"what each symbol added, points of the start; held now and trades of {found['method']}, % of equity",
          shown.SYMBOL_COLUMNS, shown.symbol_rows(found))  # fmt: skip
    if not dry_run:
        line(f"written to {found['file']}")
