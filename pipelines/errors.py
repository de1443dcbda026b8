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
│   ├── ChainBroken            the ledger is not as it was written: no champion moves
│   ├── WouldOverwrite         something exists that this would replace
│   ├── MixedCpu               parts of one candidate from CPUs that compute other bytes
│   └── LeaseHeld              another process is doing this now
├── BundleError                a model bundle that must not be served
│   ├── DigestMismatch         bytes differ from what the registry promised
│   ├── UnsafeBundle           pickle or any file the manifest does not name
│   ├── WrongSchema            it reads columns or windows that this release does not compute
│   └── GoldenMismatch         the loaded model does not repeat its golden answers
├── StateError                 live state cannot be trusted (a gap, a wrong catalogue)
├── MissingPackage             a library that only this needs is not installed
├── NoDevice                   a card that was asked for is not there
└── ServiceError               a server we need is down, or its port is taken
    ├── PortTaken
    ├── ServiceDown
    ├── ClockJumped            the wall clock was set: no bar and no decision can be dated
    └── VenueDown              an exchange that gives no bars, now or ever
"""


class BellwetherError(Exception):
    """Signal any error of this product; its message says what, how far, and what to do next."""


class InputError(BellwetherError):
    """Signal input that is refused; nothing stored was touched."""


class BadColumns(InputError):
    """Signal a column that is missing, unknown or of the wrong type."""


class BadTimes(InputError):
    """Signal times that are naive, duplicate, out of order, or from the future."""


class BadValues(InputError):
    """Signal values that are not finite, not positive, or impossible."""


class StoredAlready(BadValues):
    """Signal that a decision with this id is stored already."""


class BadShape(InputError):
    """Signal arrays whose lengths or widths do not agree."""


class UnreadableFile(InputError):
    """Signal a file that is truncated or not of its kind."""


class UnknownName(InputError):
    """Signal a name that is not registered."""


class BlockedError(BellwetherError):
    """Signal well-formed input that policy refuses."""


class QualityBlocked(BlockedError):
    """Signal that data quality is under the floor for training."""


NOT_ENOUGH_DATA = 65  # exit status of a stage that raised NotEnoughData: its last line is the reason


class NotEnoughData(BlockedError):
    """Signal too few rows for a result."""


class GateRefused(BlockedError):
    """Signal a promotion without a passing verdict."""


class ChainBroken(BlockedError):
    """Signal a ledger that is not as its chain says, so that nothing is promoted on it."""


class WouldOverwrite(BlockedError):
    """Signal that something exists which this would replace."""


class MixedCpu(BlockedError):
    """Signal parts of one candidate that were computed on CPUs of several types: its bytes could not be repeated."""

    code = "MIXED_CPU"


class LeaseHeld(BlockedError):
    """Signal that another process is doing this now. `holder` names it as the lease does; empty if unknown."""

    def __init__(self, message: str, holder: str = "") -> None:
        """Set the message and the holder."""
        super().__init__(message)
        self.holder = holder


class BundleError(BellwetherError):
    """Signal a model bundle that must not be served."""


class WrongSchema(BundleError):
    """Signal a bundle that reads columns or windows which this release does not compute."""


class DigestMismatch(BundleError):
    """Signal bytes that differ from what the registry promised."""


class UnsafeBundle(BundleError):
    """Signal a bundle that holds a pickle, or a file its manifest does not name."""


class GoldenMismatch(BundleError):
    """Signal a loaded model that does not repeat its golden answers."""


class StateError(BellwetherError):
    """Signal that live state cannot be trusted."""


class MissingPackage(BellwetherError):
    """Signal that a library which only this needs is not installed."""


class NoDevice(BellwetherError):
    """Signal that a card which was asked for is not there, or cannot be used."""


class ServiceError(BellwetherError):
    """Signal that a server we need is down, or that its port is taken."""


class PortTaken(ServiceError):
    """Signal that another process listens on the port."""


class ServiceDown(ServiceError):
    """Signal that a server does not answer."""


class ClockJumped(ServiceError):
    """Signal that the wall clock was set: no bar and no decision can be dated."""


class VenueDown(ServiceError):
    """Signal that an exchange returns no bars, now or ever."""
