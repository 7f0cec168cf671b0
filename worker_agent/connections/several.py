"""Several addresses of one control plane: the first that answers is used, and an earlier one again once it is back."""

import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import httpx

# Why there is no whole answer. Under asyncio, errors of the encryption come through httpx as they are.
HTTP_ERRORS = (httpx.HTTPError, ssl.SSLError)
# Until an address that failed is tried first again: doubled with each failure in a row.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0
# For one that failed to show that it is there: whoever hangs takes connections, and the call itself may wait long.
_PROBE_SECONDS = 1.0
_PROBE = "/livez"
# A relay answers it for a control plane that it does not reach; straight to it, there may be a way.
_BAD_GATEWAY = 502


class Preference:
    """The order in which addresses are tried: as given, those last that have failed a short while ago."""

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = [0] * count
        self._away_until = [0.0] * count

    def order(self) -> list[int]:
        """All of them, by their place."""
        moment = self._clock()
        return sorted(range(len(self._failures)), key=lambda place: max(0.0, self._away_until[place] - moment))

    def is_doubtful(self, place: int) -> bool:
        """Whether this one has not answered since it failed."""
        return self._failures[place] > 0

    def note_failure(self, place: int) -> None:
        """Note that this one did not answer."""
        pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures[place], 10))
        self._failures[place] += 1
        self._away_until[place] = self._clock() + pause

    def note_answer(self, place: int) -> None:
        """Note that this one answered."""
        self._failures[place], self._away_until[place] = 0, 0.0

    def note(self, place: int, status: int) -> None:
        """Note an answer with this status."""
        if status == _BAD_GATEWAY:
            self.note_failure(place)
        else:
            self.note_answer(place)


class _Turns:
    """The addresses in the order in which a call tries them: once more those that were slow to show a sign of life."""

    def __init__(self, preference: Preference) -> None:
        self._preference = preference
        self._order = preference.order()
        # Under heavy load one may take longer for that than it is given, and be the only one that is there.
        self._slow: list[int] = []
        self._is_last = self._is_again = self.is_sent = False

    def __iter__(self) -> Iterator[int]:
        for number, place in enumerate(chain(self._order, self._slow), 1):
            self._is_again = number > len(self._order)
            self._is_last = number == len(self._order) + len(self._slow)
            self.is_sent = False
            yield place

    def is_doubtful(self, place: int) -> bool:
        """Whether this one has to show a sign of life first: it has failed, and it is not the last way."""
        return self._preference.is_doubtful(place) and not (self._is_last or self._is_again)

    def is_over(self, place: int, error: Exception) -> bool:
        """Note that this one did not answer; whether the call has failed with that."""
        self._preference.note_failure(place)
        if not self.is_sent and isinstance(error, httpx.TimeoutException):
            self._slow.append(place)
            return False
        return self._is_last or (self.is_sent and not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout))


class SeveralTransports(httpx.BaseTransport):
    """Sends each request to the first address that can be connected to."""

    def __init__(self, places: Sequence[tuple[httpx.URL, httpx.BaseTransport]]) -> None:
        self._places = places
        self.preference = Preference(len(places))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send it; one that may have been sent already is not sent again, which is for its caller to decide."""
        turns = _Turns(self.preference)
        for place in turns:
            base, transport = self._places[place]
            try:
                if turns.is_doubtful(place):
                    probe = transport.handle_request(_probe(base))
                    probe.read()
                    probe.close()
                turns.is_sent = True
                response = transport.handle_request(_redirected(request, base))
            except HTTP_ERRORS as error:
                if turns.is_over(place, error):
                    raise
            else:
                self.preference.note(place, response.status_code)
                return response
        raise AssertionError("there is a last one")

    def close(self) -> None:
        """Close all connections."""
        for _, transport in self._places:
            transport.close()


class SeveralAsyncTransports(httpx.AsyncBaseTransport):
    """The same for asyncio."""

    def __init__(self, places: Sequence[tuple[httpx.URL, httpx.AsyncBaseTransport]]) -> None:
        self._places = places
        self.preference = Preference(len(places))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it, as above."""
        turns = _Turns(self.preference)
        for place in turns:
            base, transport = self._places[place]
            try:
                if turns.is_doubtful(place):
                    probe = await transport.handle_async_request(_probe(base))
                    await probe.aread()
                    await probe.aclose()
                turns.is_sent = True
                response = await transport.handle_async_request(_redirected(request, base))
            except HTTP_ERRORS as error:
                if turns.is_over(place, error):
                    raise
            else:
                self.preference.note(place, response.status_code)
                return response
        raise AssertionError("there is a last one")

    async def aclose(self) -> None:
        """Close all connections."""
        for _, transport in self._places:
            await transport.aclose()


def _probe(base: httpx.URL) -> httpx.Request:
    timeout = httpx.Timeout(_PROBE_SECONDS).as_dict()
    return httpx.Request("GET", str(base).rstrip("/") + _PROBE, extensions={"timeout": timeout})


def _redirected(request: httpx.Request, base: httpx.URL) -> httpx.Request:
    path = base.raw_path.rstrip(b"/") + request.url.raw_path
    url = request.url.copy_with(scheme=base.scheme, host=base.host, port=base.port, raw_path=path)
    headers = [(b"host", url.netloc), *_without_host(request.headers.raw)]
    return httpx.Request(
        request.method, url, headers=headers, stream=request.stream, extensions=dict(request.extensions)
    )


def _without_host(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name.lower() != b"host"]
