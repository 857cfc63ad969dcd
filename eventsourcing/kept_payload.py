"""A draft that keeps its payload as the bytes it was checked into, until somebody reads it.

Checking a payload against its declaration encodes it, and appending it would encode it again. Most drafts are
made and appended; whoever does read the payload may change it, and from then on it is a dictionary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from eventsourcing.base_event import BaseEvent, set_fields
from eventsourcing.canonical import decode


class KeptPayload(BaseEvent):
    """A draft whose payload may be kept as bytes."""

    __slots__ = ("encoded_payload",)

    def keep_payload(self, encoded: bytes) -> None:
        """Take canonical JSON for the payload."""
        _get_fields(self).pop("data", None)
        set_encoded(self, encoded)

    if not TYPE_CHECKING:  # to checkers an instance has a dictionary like any other

        @property
        def __dict__(self) -> dict[str, Any]:
            """All fields: pydantic, a copy or an encoder that looks here finds the payload."""
            fields, encoded = _get_fields(self), self.encoded_payload
            if encoded is not None:
                fields["data"] = decode(encoded)
                set_encoded(self, None)
            return fields

        @__dict__.setter
        def __dict__(self, fields: dict[str, Any]) -> None:
            set_encoded(self, None)
            set_fields(self, fields)


class _Payload:
    """The payload while it is not in the draft's dictionary."""

    def __get__(self, event: KeptPayload | None, owner: type) -> Any:
        if event is None or event.encoded_payload is None:
            raise AttributeError("data")  # no class has a field
        return event.__dict__["data"]


_get_fields = vars(BaseModel)["__dict__"].__get__
set_encoded = vars(KeptPayload)["encoded_payload"].__set__
setattr(KeptPayload, "data", _Payload())  # noqa: B010 - an assignment would be one to the field
