"""What was announced, and what requests on their way bring beside it."""

from __future__ import annotations

from collections.abc import Sequence

from shardload.reader.requests import UNIT_BYTES, WAITING, Place, Request, Span, Spans, given_out


class Announced:
    """Ranges that were announced, and the units of files that lie wholly in requests which are waiting or running.

    What else is wanted of such a unit comes by the same request. Called under the lock of `Arrivals`.
    """

    def __init__(self) -> None:
        self._spans = Spans()
        self._units: dict[int, dict[int, Request]] = {}

    def __bool__(self) -> bool:
        """Whether something is to be read, or on its way."""
        return bool(self._spans) or any(self._units.values())

    def overlapping(self, shard_id: int, start: int, stop: int) -> list[Span]:
        """Returns the spans that have bytes of a range."""
        return self._spans.overlapping(shard_id, start, stop)

    def distrusted(self, shard_id: int, start: int, stop: int) -> list[Span]:
        """Returns the spans that have bytes of a range that came damaged; what is on its way brings no more of it."""
        # It may have taken the damaged bytes from where they were kept.
        units = self._units.get(shard_id, {})
        for unit in range(start // UNIT_BYTES, -(-stop // UNIT_BYTES)) if units else ():
            units.pop(unit, None)
        return self.overlapping(shard_id, start, stop)

    def wanted(self, place: Place, turn: int) -> tuple[list[Place], list[Request]]:
        """Notes a range as wanted in a turn.

        Returns:
            What is missing of it, and the requests that bring the rest, or have brought it.
        """
        shard_id, start, stop = place
        missing, requests = list[Place](), list[Request]()
        for span in self._spans.overlapping(shard_id, start, stop):
            if span.start > start:
                self._take_up((shard_id, start, span.start), turn, missing, requests)
            span.need(turn, start, stop)
            start = span.stop
            requests.append(span.request)
        if start < stop:
            self._take_up((shard_id, start, stop), turn, missing, requests)
        return missing, requests

    def add(self, missing: Sequence[Place], requests: Sequence[Request], turn: int) -> None:
        """Takes in requests for what is missing; both are in the order of the files."""
        for shard_id, spans in given_out(missing, requests, turn).items():
            self._spans.add(shard_id, spans)
        for request in requests:
            units = self._units.setdefault(request.shard_id, {})
            for unit in request.units:
                units[unit] = request

    def remove(self, span: Span) -> bool:
        """Drops a span; returns False if it is not there."""
        request = span.request
        if not self._spans.remove(span):
            return False
        request.spans.remove(span)
        if not request.spans and request.state == WAITING:
            # Whoever takes it out of the queue leaves it out.
            self.ended(request)
        return True

    def ended(self, request: Request) -> None:
        """Notes that a request brings nothing more: it has come, or nobody wants it."""
        units = self._units.get(request.shard_id, {})
        for unit in request.units:
            if units.get(unit) is request:
                del units[unit]

    def _take_up(self, place: Place, turn: int, missing: list[Place], requests: list[Request]) -> None:
        """Has requests bring a range, as far as they come by it; the rest is missing."""
        shard_id, start, stop = place
        units = self._units.get(shard_id)
        if not units:
            missing.append(place)
            return
        while start < stop:
            request, end = _coming(units.get(start // UNIT_BYTES)), (start // UNIT_BYTES + 1) * UNIT_BYTES
            while end < stop and _coming(units.get(end // UNIT_BYTES)) is request:
                end += UNIT_BYTES
            end = min(end, stop)
            if request is None:
                missing.append((shard_id, start, end))
            else:
                span = Span(start, end, request, turn)
                request.spans.append(span)
                self._spans.insert(shard_id, span)
                requests.append(request)
            start = end


def _coming(request: Request | None) -> Request | None:
    """Returns a request unless who asked for it gives it up."""
    return None if request is None or request.stop.is_set() else request
