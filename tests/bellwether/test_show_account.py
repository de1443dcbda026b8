"""What `bellwether account` prints of an answer of /account: every figure with its source."""

from bellwether.cli.decisions import show_account

POSITION = {
    "symbol": "SIM/USDT", "side": "BUY", "size": 0.04, "entry": 42290.1, "filled_at": None, "unrealised": None,
    "expiry": "2024-01-09T12:00:00+00:00",
}  # fmt: skip
FOUND = {
    "source": "reported", "as_of": "2024-01-09T08:15:00+00:00", "equity": 1.0012, "peak": 1.002, "drawdown": 0.0008,
    "day": "2024-01-09", "daily_pnl": 0.0012, "gross": 0.04, "unrealised": None, "mismatch": None, "positions": [],
}  # fmt: skip


def test_an_account_is_shown_with_its_source_and_without_positions_as_one_table(capsys):
    show_account(FOUND)
    printed = capsys.readouterr().out
    assert "account by reported" in printed
    assert all(figure in printed for figure in ("1.0012", "0.08%", "+0.12%"))
    assert "open positions" not in printed


def test_an_order_without_a_fill_says_so_and_a_mismatch_what_it_stops(capsys):
    show_account(FOUND | {"positions": [POSITION], "mismatch": "fill f1 differs"})
    printed = " ".join(capsys.readouterr().out.split())
    assert "open positions by reported" in printed
    assert "account_mismatch: fill f1 differs; nothing new is opened" in printed
