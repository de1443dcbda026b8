"""Every error this product raises on purpose. Callers catch the level they mean.

BellwetherError
├── InputError                 the caller passed something we refuse; nothing stored was touched
│   ├── BadColumns             a column is missing, unknown or of the wrong type
│   ├── BadTimes               naive, duplicate, out of order, or from the future
│   ├── BadValues              not finite, non-positive, or impossible (high below low)
│   │   └── StoredAlready      a decision with this id exists
│   ├── BadShape               arrays whose lengths or widths do not agree
│   ├── UnreadableFile         a file that is truncated or not of its kind
│   └── UnknownName            a symbol, family, source, timeframe or version that is not registered
├── BlockedError               the input is well-formed but policy says no
│   ├── QualityBlocked         data quality under the floor: no training on it
│   ├── NotEnoughData          too few rows to say anything
│   ├── GateRefused            promotion without a passing verdict
│   ├── WouldOverwrite         something exists that this would replace
│   └── LeaseHeld              another process is doing this now
├── BundleError                a model bundle that must not be served
│   ├── DigestMismatch         bytes differ from what the registry promised
│   ├── UnsafeBundle           pickle or any file the manifest does not name
│   ├── WrongSchema            it reads columns or windows that this release does not compute
│   └── GoldenMismatch         the loaded model does not repeat its golden answers
├── StateError                 live state cannot be trusted (a gap, a wrong catalogue)
├── MissingPackage             a library that only this needs is not installed
└── ServiceError               a server we need is down, or its port is taken
    ├── PortTaken
    ├── ServiceDown
    ├── ClockJumped            the wall clock was set: no bar and no decision can be dated
    └── VenueDown              an exchange that gives no bars, now or ever
"""


class BellwetherError(Exception):
    """Base of all errors; its message says what, how far, and what to do next."""


class InputError(BellwetherError):
    """Refused input; nothing stored was touched."""


class BadColumns(InputError):
    """A column is missing, unknown or of the wrong type."""


class BadTimes(InputError):
    """Times are naive, duplicate, out of order, or from the future."""


class BadValues(InputError):
    """Values are not finite, non-positive, or impossible."""


class StoredAlready(BadValues):
    """A decision with this id exists."""


class BadShape(InputError):
    """Array lengths or widths do not agree."""


class UnreadableFile(InputError):
    """A file is truncated or not of its kind."""


class UnknownName(InputError):
    """A name is not registered."""


class BlockedError(BellwetherError):
    """Well-formed input that policy refuses."""


class QualityBlocked(BlockedError):
    """Data quality is under the floor for training."""


class NotEnoughData(BlockedError):
    """Too few rows for a result."""


class GateRefused(BlockedError):
    """A promotion has no passing verdict."""


class WouldOverwrite(BlockedError):
    """Something exists that this would replace."""


class LeaseHeld(BlockedError):
    """Another process is doing this now. `holder` names it as the lease does; empty if unknown."""

    def __init__(self, message: str, holder: str = "") -> None:
        """Set the message and the holder."""
        super().__init__(message)
        self.holder = holder


class BundleError(BellwetherError):
    """A model bundle must not be served."""


class WrongSchema(BundleError):
    """A bundle reads columns or windows that this release does not compute."""


class DigestMismatch(BundleError):
    """Bytes differ from what the registry promised."""


class UnsafeBundle(BundleError):
    """A bundle holds a pickle or a file its manifest does not name."""


class GoldenMismatch(BundleError):
    """A loaded model does not repeat its golden answers."""


class StateError(BellwetherError):
    """Live state cannot be trusted."""


class MissingPackage(BellwetherError):
    """A library that only this needs is not installed."""


class ServiceError(BellwetherError):
    """A server we need is down, or its port is taken."""


class PortTaken(ServiceError):
    """Another process listens on the port."""


class ServiceDown(ServiceError):
    """A server does not answer."""


class ClockJumped(ServiceError):
    """The wall clock was set: no bar and no decision can be dated."""


class VenueDown(ServiceError):
    """An exchange returns no bars, now or ever."""
