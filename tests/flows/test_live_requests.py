"""A turn repeats a request that the decision service cannot answer now, and gives up on one that it never answers."""

import pytest

from flows.support import live_feed
from pipelines.errors import InputError, ServiceDown

NOT_NOW = {"symbol": "SIM/USDT", "error": "not done: the database has not answered for 0.8 s", "kind": "ServiceDown"}
BAD = {"symbol": "SIM/USDT", "error": "high below low", "kind": "InputError"}
DONE = {"symbol": "SIM/USDT", "new": 15}


def of(*outcomes):
    """Return a request with these outcomes, one a call, and the calls that were made."""
    left, calls = list(outcomes), []

    def request():
        """Return or raise the next outcome."""
        calls.append(len(calls))
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return [found]

    return request, calls


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """Repeat without waiting."""
    monkeypatch.setattr(live_feed, "PAUSE_S", 0.0)


def test_what_cannot_be_done_now_is_repeated_whole_or_in_part():
    request, calls = of(ServiceDown("503"), NOT_NOW, DONE)
    assert live_feed._repeated(request) == [DONE]
    assert len(calls) == 3


def test_bad_data_and_what_the_service_refuses_are_not_repeated():
    request, calls = of(BAD)
    assert live_feed._repeated(request) == [BAD]
    request, calls = of(InputError("unknown field"))
    with pytest.raises(InputError):
        live_feed._repeated(request)
    assert len(calls) == 1


def test_a_service_that_never_answers_ends_it_with_its_own_words():
    request, calls = of(*[ServiceDown(f"503, attempt {n}") for n in range(live_feed.ATTEMPTS)])
    with pytest.raises(ServiceDown, match=f"attempt {live_feed.ATTEMPTS - 1}"):
        live_feed._repeated(request)
    assert len(calls) == live_feed.ATTEMPTS
    request, calls = of(*[NOT_NOW] * live_feed.ATTEMPTS)
    assert live_feed._repeated(request) == [NOT_NOW]
