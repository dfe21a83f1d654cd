"""A parser of event streams that follows the WHATWG HTML standard, sections 9.2.5 and 9.2.6, to the letter.

Written from the standard, beside the one in tests/src/sse.rs; vectors.json judges both.
"""

from dataclasses import dataclass


@dataclass
class Event:
    """An event that a browser would dispatch."""

    name: str
    data: str
    last_event_id: str


@dataclass
class Retry:
    """A valid `retry:` field."""

    millis: int


class Parser:
    """State between chunks. Bytes are decoded line by line: no UTF-8 sequence spans a line end."""

    def __init__(self):
        self._rest, self._after_cr, self._begun = b"", False, False
        self._data, self._name, self._id = [], "", ""
        self.last_event_id = ""

    def push(self, data):
        """Takes the next bytes; returns what they complete."""
        self._rest += data
        if not self._begun:
            bom = b"\xef\xbb\xbf"
            if len(self._rest) < 3 and bom.startswith(self._rest):
                return []
            self._rest, self._begun = self._rest.removeprefix(bom), True
        items = []
        while True:
            if self._after_cr and self._rest:
                self._rest, self._after_cr = self._rest.removeprefix(b"\n"), False
            ends = [i for i in (self._rest.find(b"\r"), self._rest.find(b"\n")) if i >= 0]
            if not ends:
                return items
            end = min(ends)
            line, self._after_cr = self._rest[:end], self._rest[end : end + 1] == b"\r"
            self._rest = self._rest[end + 1 :]
            items += self._line(line.decode("utf-8", "replace"))

    def _line(self, line):
        if not line:
            return self._dispatch()
        field, colon, value = line.partition(":")
        if colon and not field:
            return []
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        elif field == "id" and "\0" not in value:
            self._id = value
        elif field == "retry" and value and all(c in "0123456789" for c in value):
            return [Retry(int(value))]
        return []

    def _dispatch(self):
        self.last_event_id = self._id
        data, name = self._data, self._name
        self._data, self._name = [], ""
        # The standard's data buffer is the lines with a LF after each; it is empty only without any line.
        return [Event(name or "message", "\n".join(data), self.last_event_id)] if data else []
