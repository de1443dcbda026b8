"""The page docs/results/ab.md, made from stored evidence by `python -m benchmarks.evidence --write`."""

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from scipy.stats import invgauss

from benchmarks import ab, ab_end_to_end, ab_guardrails
from benchmarks.ab_streams import EVENTS_A_DAY, HORIZON, HORIZONS, NULLS, SYMBOLS
from benchmarks.results import machines, table
from pipelines.contracts import JsonObject
from pipelines.experiments.eprocess import BET_SHARES
from pipelines.experiments.guardrails import HARM_CLIP, limit_of
from pipelines.experiments.verdict import FUTILITY_BETS, FUTILITY_CLIP, WIN_BETS
from pipelines.settings import load_params

EXPECTED = {0.002: (219, 380), 0.005: (79, 120), 0.010: (36, 60), 0.030: (13, 22)}  # blocks, at .05 and .005
INTRODUCTION = """\
Made by `python -m benchmarks.evidence --write` from what a run stored; nothing here was typed in. Repeat it with
`python -m benchmarks.evidence {parts}`, then write the page. Everything is simulated with a known truth
(`benchmarks/ab_streams.py`), no market's result is in here. Seeds are 0, 1, 2 … in the order of their cases; none was
left out."""
SETTING = """\
{symbols} symbols of correlation .5, {events} decisions a market day each; an outcome takes {horizon} bars of 15
minutes. A block is {horizons} horizons and a gap of one: a market day. The bound of block means is {deviations:g}
standard deviations of {before} earlier blocks. An experiment wins by bets of {win} of the largest bet that cannot ruin,
and is stopped for futility by one of {futility}, with gains clipped at {clip:g} of the bound. All are fixed before the
first block. Intervals are of 95 %: Wilson's of shares, of order statistics of medians."""
NULL_TEXT = """\
No challenger gains anything here. *Ours*: share of {runs:,} experiments a stream that are promoted, looked at after
each of {blocks} blocks, with the upper end of its interval. The other two are what must not be done: a one-sided t-test
after every block from the {first}th on, and the same bets on every decision. *AR*: autocorrelation of the noise from
bar to bar; *GARCH*: its spread follows its own past; *skewed*: the challenger's losses are rare and large; *labels*:
two predictors with different errors of the same size, on outcomes that overlap."""
YEAR_TEXT = """\
{years} market years of four families whose challengers gain nothing. Each family's next experiment begins where its
last one ends, after {blocks} blocks at most; it takes {share:g} of what is left of a budget of {budget:g}. Experiments
begun in the year count. False promotions with an exact Poisson interval; the others with the least and the most."""
POWER_TEXT = """\
The challenger knows the true chances, the champion knows them with an error that costs it the gain. *Signal*: mean gain
of a block in its standard deviations. *Blocks*: median until promotion. *Fixed*: blocks of a one-sided t-test of the
same level, looked at once, with a power of {target:.0%} on the same block means. *Price*: ratio of the two; *same
power*: of the blocks until {target:.0%} are promoted. *Four bets*: blocks with bets of {four}, as the watch of the loss
uses them. *Expected*: what was expected before anything was simulated. {runs:,} experiments a gain."""
PRICE_TEXT = """\
Promised: a price of at most 1.6 where a fixed-n test needs 150 blocks or more, and of at most 3 where it needs about 30
(20 to 45). The highest of either column: {long}; {short}."""
SPLIT_TEXT = """\
*Split*: each block on one arm alone, the arms compared unpaired. Samples for the same power are in the ratio of the
variance of a block's paired difference to twice the sum of the arms' own variances."""
FUTILITY_TEXT = """\
Experiments at a level of {alpha:g} for promotion, at most {blocks} blocks. A challenger is stopped when the bets say at
`futility_alpha` that its gain is under the least gain, {least:.0%} of the champion's skill. The columns give the share
stopped and the median blocks of all. A challenger with exactly the least gain should be stopped in at most a share of
`futility_alpha`; *skewed*: one whose gains are rare and large, so that clipping takes some of them away. *Signal*: by
how much the mean gain is below the least, in standard deviations of a block. *Best*: median blocks at .2 of the one bet
that is best for a normal gain of this signal, without a bound: no test that may be looked at after every block needs
much less."""
GUARDRAIL_TEXT = """\
Each guardrail looks at challengers of known harm for {blocks} blocks: after every block, and those of latency and of
faults after every answer, {answers} a block. The columns give the share that trips in that time and in the {ramp}
blocks of a ramp, and the median of all until it trips. The guardrails on blocks go on from the shadow into the ramp, so
that a slow one has looked for dozens of blocks when it begins. Neighbouring decisions and the symbols move together as
above; *in episodes*: abstentions, or novel inputs, come in spells of about a block. The champion abstains at
{abstains:.0%} and has {novel:.0%} novel inputs. An answer takes {ms:g} ms at the median and is lognormal, with a
deviation of {spread:g} of its logarithm; *slow at times*: for {slow_share:.0%} of the time, {slow:g} answers on
average, the machine takes {times:g} times as long for both arms. Drawdown: of an account whose returns are normal with
the stated deviation a day; *loses half*: half of it a day. {runs:,} runs a row where a level is promised,
{harm_runs:,} in the others."""
LEVEL_TEXT = """\
Promised: a harmless challenger trips each guardrail in at most {level:g} of all cases, by the upper bound of its
worst row."""
CLIP_TEXT = """\
Blocks that lie further than {clip:g} in the harmless direction count as so much: {usual:.2%} of them at most in these
rows, {episodes:.1%} in episodes."""
UNPROMISED_TEXT = """\
Not promised: at the very limit in episodes, where a block tells of the next one ({episodes:.1%} at most). And the
drawdown is a limit of loss, no test: an account without an edge reaches it by chance, sooner the more it moves."""
MEDIANS_TEXT = """\
The guardrail of latency counts the closes at which the challenger alone was too slow. Comparing the two medians with
the limit would stop {medians:.0%} of harmless challengers on the machine that is slow at times."""
SPLIT_TEST_TEXT = """\
Units, one symbol in one block, fall to the challenger as stated, or not; the test looks after every block of a ramp
({ramp}) or, *long*, of {long} blocks at each of its weights. *None*: the challenger gets no unit; *twice as many*:
twice the stated share. {runs:,} runs a row."""
END_TO_END_TEXT = """\
{n} experiments on a home each, {seeds} seeds a challenger: SQLite with its migrations, ledger and chain. As days
pass, a decision at every close and the outcomes of its events are stored, and the monitor's own code scores the blocks
and decides, at a level of {alpha:g}: in every fifth case after every block, in the others after every fifth. Better and
worse as above, equal as *labels*. {blocks} blocks were scored, {void} are void. Afterwards each verdict is computed
again from the ledger, with every block from its outcomes, and the chain of the store is verified."""


def ab_page(found: JsonObject, incomplete: Sequence[str]) -> str:
    """Return the page of the parts found; `incomplete` names those missing or not finished."""
    blocks = [
        "# Experiments: false promotions, power and price, futility, guardrails, end to end",
        INTRODUCTION.format(parts=" ".join(PARTS)),
        *machines(found),
        SETTING.format(
            symbols=SYMBOLS, events=EVENTS_A_DAY, horizon=HORIZON, horizons=HORIZONS, deviations=ab.DEVIATIONS,
            before=ab.GATE_BLOCKS, win=_listed(WIN_BETS), futility=_listed(FUTILITY_BETS), clip=FUTILITY_CLIP,
        ),
    ]  # fmt: skip
    if incomplete:
        blocks.append(f"**Not run, or not to its end: {', '.join(incomplete)}.**")
    for name, section in SECTIONS.items():
        if name in found:
            blocks += section(found[name]["figures"])
    return "\n\n".join(block if block[0] in "#|-" else fill(block, 120) for block in blocks) + "\n"


def null_section(figures: JsonObject) -> list[str]:
    """Return the section on false promotions."""
    rows, worst = [], dict.fromkeys(ab.LEVELS, 0.0)
    for kind in NULLS:
        if f"{kind}|clipped" not in figures:
            continue
        for level in ab.LEVELS:
            ours, t_test, each = (figures[f"{kind}|{way}|{level:g}"] for way in ("ours", "t_test", "each"))
            worst[level] = max(worst[level], ours["high"])
            rows.append([
                kind, f"{level:g}", f"{ours['value']:.2%}, at most {ours['high']:.2%}", f"{t_test['value']:.1%}",
                f"{each['value']:.1%}", f"{figures[f'{kind}|clipped']['value']:.3%}", f"{ours['n']:,}",
            ])  # fmt: skip
    words = "; ".join(f"{level:g}: at most {high:.2%}, {_held(high <= level)}" for level, high in worst.items())
    heads = ["stream", "level", "ours", "t-test, repeated", "bet on every decision", "blocks clipped", "runs"]
    text = NULL_TEXT.format(runs=ab.NULL_RUNS * ab.NULL_SEEDS, blocks=ab.MAX_BLOCKS, first=ab.FIRST_TEST)
    return ["## False promotions", text, table(heads, rows), f"Promised: the upper bound is under the level. {words}."]


def year_section(figures: JsonObject) -> list[str]:
    """Return the section on years."""
    names = {
        "won": "false promotions", "alpha": "sum of the levels spent", "experiments": "experiments begun",
        "stopped": "stopped for futility", "expired": "expired",
    }  # fmt: skip
    rows = [[words, f"{e['value']:.3g}", f"{e['low']:.3g} to {e['high']:.3g}"]
            for name, words in names.items() if (e := figures.get(name))]  # fmt: skip
    if not rows:
        return []
    text = YEAR_TEXT.format(
        years=figures["won"]["n"], blocks=ab.MAX_BLOCKS, share=ab.BUDGET_SHARE, budget=ab.YEAR_BUDGET
    )
    held = f"Promised: the interval is under 1 a year. {_held(figures['won']['high'] <= 1.0).capitalize()}."
    return ["## A year of experiments", text, table(["a year", "mean", "interval"], rows), held]


def power_section(figures: JsonObject) -> list[str]:
    """Return the section on power, its price, and paired against split."""
    rows, prices, splits = [], [], []
    for gain in ab.GAINS:
        if f"{gain:g}|gain" not in figures:
            continue
        for level in ab.POWER_LEVELS:
            key = f"{gain:g}|{level:g}"
            fixed = figures[f"{key}|fixed"]["value"]
            prices += [(fixed, figures.get(f"{key}|{name}", {}).get("value")) for name in ("price", "same_power")]
            expected = dict(zip((0.05, 0.005), EXPECTED[gain], strict=True)).get(level)
            rows.append([
                f"{gain:g}", f"{figures[f'{gain:g}|signal']['value']:.3f}", f"{level:g}",
                _median(figures[f"{key}|median"], ab.GAINS[gain]), f"{expected or '–'}",
                f"{figures[f'{key}|{ab.MAX_BLOCKS}']['value']:.0%}", f"{figures[f'{key}|400']['value']:.0%}",
                f"{fixed or f'over {ab.GAINS[gain]}'}", _ratio(figures.get(f"{key}|price")),
                _ratio(figures.get(f"{key}|same_power")),
                _median(figures[f"{key}|four_bets"], ab.GAINS[gain], interval=False),
            ])  # fmt: skip
        split = figures[f"{gain:g}|split"]
        splits.append([f"{gain:g}", f"{split['value']:.3f}", f"{split['low']:.3f} to {split['high']:.3f}"])
    heads = ["gain, nats", "signal", "level", "blocks", "expected", f"promoted in {ab.MAX_BLOCKS}", "in 400", "fixed",
             "price", "same power", "four bets"]  # fmt: skip
    long = [price for fixed, price in prices if fixed and price and fixed >= 150]
    short = [price for fixed, price in prices if fixed and price and 20 <= fixed <= 45]
    runs = next((e["n"] for name, e in figures.items() if name.endswith("|median")), 0)
    most_split = max(figures[name]["value"] for name in figures if name.endswith("|split"))
    return [
        "## Power and its price",
        POWER_TEXT.format(target=ab.TARGET, four=_listed(BET_SHARES), runs=runs), table(heads, rows),
        PRICE_TEXT.format(long=_most(long, 1.6), short=_most(short, 3.0)),
        "### Paired in shadow, against a split", SPLIT_TEXT,
        table(["gain, nats", "samples of paired over those of split", "least and most of the seeds"], splits),
        f"Goal: at most a quarter; the most is {most_split:.3f}, {_held(most_split <= 0.25)}.",
    ]  # fmt: skip


def futility_section(figures: JsonObject) -> list[str]:
    """Return the section on futility."""
    rows, slowest, wrong = [], {}, dict.fromkeys(ab.FUTILITY_LEVELS, 0.0)
    for who, (_, _, skills) in ab.CHALLENGERS.items():
        for skill in skills:
            if f"{who}|{skill:g}|signal" not in figures:
                continue
            signal, cells = figures[f"{who}|{skill:g}|signal"]["value"], []
            for level in ab.FUTILITY_LEVELS:
                stopped, median = (figures[f"{who}|{skill:g}|{level:g}|{name}"] for name in ("stopped", "median"))
                shares = f"{stopped['value']:.1%} ({stopped['low']:.1%} to {stopped['high']:.1%})"
                cells.append(f"{shares}; {_median(median, ab.MAX_BLOCKS, interval=False)}")
                if "worse" in who:
                    slowest[skill, level] = median["value"] or np.inf
                if who == "least gain":
                    wrong[level] = max(wrong[level], stopped["value"])
            rows.append(
                [who, f"{skill:g}", f"{round(signal, 2) + 0.0:.2f}", *cells, _best(signal, max(ab.FUTILITY_LEVELS))]
            )
    heads = ["challenger", "champion's skill, nats", "signal", *(f"at {level:g}" for level in ab.FUTILITY_LEVELS),
             "best"]  # fmt: skip
    text = FUTILITY_TEXT.format(alpha=ab.ALPHA, blocks=ab.MAX_BLOCKS, least=ab.LEAST_SHARE)
    words = ["Promised: a challenger worse by the whole skill is stopped after a median of 10 blocks or fewer."]
    words += [f"Skill {skill:g} at {level:g}: {blocks:.0f}, {_held(blocks <= 10)}." for (skill, level), blocks in
              slowest.items() if level == max(ab.FUTILITY_LEVELS)]  # fmt: skip
    words.append("Promised: with the least gain at most `futility_alpha` are stopped.")
    words += [f"At {level:g}: {most:.1%}, {_held(most <= level)}." for level, most in wrong.items()]
    level = max(ab.FUTILITY_LEVELS)
    lost = [
        e["value"] for name, e in figures.items() if name.startswith("better") and name.endswith(f"|{level:g}|stopped")
    ]
    if lost:
        words.append(f"At {level:g}, which stops harm soonest, {max(lost):.1%} of those better by the skill are lost.")
    words.append("Skewed gains are not promised: their level holds for the mean of the clipped gains.")
    return ["## Futility", text, table(heads, rows), " ".join(words)]


def guardrail_section(figures: JsonObject) -> list[str]:
    """Return the section on guardrails and on the sample ratio."""
    params, rows, worst, episodes, medians = load_params().experiment, [], dict[str, float](), [0.0], [0.0]
    for name, one in ab_guardrails.SCENARIOS.items():
        if f"{name}|tripped" not in figures:
            continue
        tripped, ramp, median = (figures[f"{name}|{what}"] for what in ("tripped", "ramp", "median"))
        answers = one.metric in ab_guardrails.ON_ANSWERS
        words = _median(median, ab.MAX_BLOCKS * (ab_guardrails.ANSWERS if answers else 1))
        rows.append([
            one.metric, f"{limit_of(one.metric, params.guardrails):g}", one.challenger,
            f"{tripped['value']:.1%} ({tripped['low']:.1%} to {tripped['high']:.1%})", f"{ramp['value']:.1%}",
            f"{words} {'answers' if answers else 'blocks'}",
        ])  # fmt: skip
        if one.harmless:
            worst[one.metric] = max(worst.get(one.metric, 0.0), tripped["high"])
        elif one.size == ab_guardrails.LIMIT:
            episodes.append(tripped["value"])
        medians.append(figures.get(f"{name}|medians", {"value": 0.0})["value"])
    level, stages = params.guardrails.level, params.ramp
    kept = [f"{metric}: at most {high:.2%}, {_held(high <= level)}" for metric, high in worst.items()]
    numbers = sorted(e["n"] for name, e in figures.items() if name.endswith("|ramp"))
    return [
        "## Guardrails",
        GUARDRAIL_TEXT.format(
            blocks=ab.MAX_BLOCKS, answers=ab_guardrails.ANSWERS, ramp=ab_guardrails.ramp_blocks(),
            runs=numbers[-1], harm_runs=numbers[0], abstains=ab_guardrails.BASE["abstention"],
            novel=ab_guardrails.BASE["novelty"], ms=ab_guardrails.BASE_MS, spread=ab_guardrails.SPREAD,
            slow_share=ab_guardrails.SLOW_SHARE, slow=ab_guardrails.SLOW_ANSWERS, times=ab_guardrails.SLOW_TIMES,
        ),
        table(["guardrail", "limit", "challenger", f"trips in {ab.MAX_BLOCKS} blocks",
               f"in {ab_guardrails.ramp_blocks()}", "median"], rows),
        f"{LEVEL_TEXT.format(level=level)} {'; '.join(kept)}. "
        + CLIP_TEXT.format(clip=HARM_CLIP, usual=_clipped(figures, ""), episodes=_clipped(figures, "episodes")),
        f"{UNPROMISED_TEXT.format(episodes=max(episodes))} {MEDIANS_TEXT.format(medians=max(medians))}",
        "### Whether the split is as stated",
        SPLIT_TEST_TEXT.format(
            ramp=f"{stages.canary_blocks} blocks at {stages.canary_weight:g}, {stages.split_blocks} at "
            f"{stages.split_weight:g}", long=ab_guardrails.LONG,
            runs=max((figures[f"{name}|tripped"]["n"] for name in ab_guardrails.SPLITS if f"{name}|tripped" in figures),
                     default=0),
        ),
        *_splits(figures, params.sample_ratio_alpha),
    ]  # fmt: skip


def _clipped(figures: JsonObject, kind: str) -> float:
    """Return the largest share of blocks that were clipped, of the rows of one kind for which a level is promised."""
    names = [name for name, one in ab_guardrails.SCENARIOS.items() if one.harmless and one.kind == kind]
    return max((figures[f"{name}|clipped"]["value"] for name in names if f"{name}|clipped" in figures), default=0.0)


def _splits(figures: JsonObject, alpha: float) -> list[str]:
    """Return the table of splits and its promise."""
    rows, highest = [], 0.0
    for name, split in ab_guardrails.SPLITS.items():
        if f"{name}|tripped" not in figures:
            continue
        tripped = figures[f"{name}|tripped"]
        blocks = sum(blocks for _, blocks in ab_guardrails.split_stages(split))
        shown = f"{tripped['value']:.3%} (at most {tripped['high']:.3%})"
        rows.append([name, f"{blocks}", shown, _median(figures[f"{name}|median"], blocks)])
        highest = max(highest, tripped["high"] if split.times == 1.0 else 0.0)
    promise = f"at most {alpha:.1%} are called broken, by the upper bound of the worst row"
    return [
        table(["units of the challenger", "blocks", "called broken", "median blocks"], rows),
        f"Promised: of splits that are as stated {promise}: {highest:.3%}, {_held(highest <= alpha)}.",
    ]


def end_to_end_section(figures: JsonObject) -> list[str]:
    """Return the section on whole experiments."""
    rows, counts = [], dict[str, JsonObject]()
    for who, (_, gain, skill) in ab_end_to_end.CHALLENGERS.items():
        if f"{who}|after" not in figures:
            continue
        states = {state: figures[f"{who}|{state}"] for state in ("won", "stopped", "expired")}
        n = states["won"]["n"]
        counts[who] = {state: round(e["value"] * n) for state, e in states.items()} | {"n": n}
        rows.append([
            who, f"{-gain if who == 'worse' else gain:+g}", f"{ab.LEAST_SHARE * skill:g}",
            *(f"{counts[who][state]} of {n}" for state in states),
            _median(figures[f"{who}|after"], ab.MAX_BLOCKS),
        ])  # fmt: skip
    wrong, faults, void = (round(figures[name]["value"]) for name in ("not the same", "faults", "void"))
    most, least = ab_end_to_end.MOST_EQUAL, ab_end_to_end.LEAST_BETTER
    words = []
    if "better" in counts:
        words.append(f"better: at least {least} won, {_held(counts['better']['won'] >= least)}")
    if "equal" in counts:
        words.append(f"equal: at most {most} won, {_held(counts['equal']['won'] <= most)}")
    if "worse" in counts:
        worse = counts["worse"]
        words.append(f"worse: all stopped for futility, {_held(worse['stopped'] == worse['n'])}")
    words.append(f"every verdict computed again is the recorded one, {_held(wrong == 0)}")
    words.append(f"no fault of the chain, {_held(faults == 0)}")
    others = round(figures["misassigned"]["value"] + figures["broken"]["value"])
    words.append(f"every unit of a canary or split is decided by its arm and no guardrail trips, {_held(others == 0)}")
    return [
        "## End to end",
        END_TO_END_TEXT.format(alpha=figures["alpha"]["value"], n=figures["alpha"]["n"], seeds=ab_end_to_end.SEEDS,
                               blocks=f"{figures['blocks']['value']:,.0f}", void=void),
        table(["challenger", "gain, nats", "least gain, nats", "won", "stopped", "expired", "median blocks"], rows),
        f"Promised, of {ab_end_to_end.SEEDS} seeds each: {'; '.join(words)}.",
    ]  # fmt: skip


def _best(signal: float, level: float) -> str:
    """Return the median blocks in which the best bet on a normal gain wins 1 / level; a dash where there is no signal.

    The logarithm of its wealth moves by half the squared signal a block with the signal as its deviation: the time to a
    level is inverse Gaussian.
    """
    if signal < 0.1:
        return "–"
    height = np.log(1.0 / level)
    mean, shape = 2.0 * height / signal**2, height**2 / signal**2
    return f"{invgauss(mean / shape, scale=shape).median():.0f}"


def _ratio(e: JsonObject | None) -> str:
    """Return a price; a dash where one of the two was not reached."""
    return "–" if e is None or e["value"] is None else f"{e['value']:.2f}"


def _listed(numbers: Sequence[float]) -> str:
    """Return numbers in a sentence."""
    words = [f"{number:g}" for number in numbers]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _held(true: bool) -> str:
    """Return whether a promise holds, in a word."""
    return "kept" if true else "**not kept**"


def _most(prices: Sequence[float], limit: float) -> str:
    """Return the highest price and whether it is within the limit."""
    return f"{max(prices):.2f}, {_held(max(prices) <= limit)}" if prices else "no such row"


def _median(e: JsonObject, simulated: int, interval: bool = True) -> str:
    """Return a median in blocks with its interval; one after the blocks that were simulated is "over" them."""
    value, low, high = (f"{e[name]:.0f}" if e[name] is not None else f"over {simulated}" for name in
                        ("value", "low", "high"))  # fmt: skip
    return f"{value} ({low} to {high})" if interval and e["low"] is not None else value


SECTIONS = {
    "ab_false_promotions": null_section, "ab_years": year_section, "ab_power": power_section,
    "ab_futility": futility_section, "ab_guardrails": guardrail_section, "ab_end_to_end": end_to_end_section,
}  # fmt: skip
PARTS = tuple(SECTIONS)
