"""Every error this product raises on purpose. Callers catch the level they mean.

BellwetherError
├── InputError                 somebody handed us something we refuse; nothing stored was touched
│   ├── BadColumns             a column is missing, unknown or of the wrong type
│   ├── BadTimes               naive, duplicate, out of order, or from the future
│   ├── BadValues              not finite, non-positive, or impossible (high below low)
│   │   └── StoredAlready      a decision stands under this id
│   ├── BadShape               arrays whose lengths or widths do not agree
│   ├── UnreadableFile         a file that is truncated or not of its kind
│   └── UnknownName            a symbol, family, source, timeframe or version nobody registered
├── BlockedError               the input is well-formed but policy says no
│   ├── QualityBlocked         data quality under the floor: no training on it
│   ├── NotEnoughData          too few rows to say anything
│   ├── GateRefused            promotion without a passing verdict
│   ├── WouldOverwrite         something is there that this would replace
│   └── LeaseHeld              somebody else is doing this now
├── BundleError                a model bundle that must not be served
│   ├── DigestMismatch         bytes differ from what the registry promised
│   ├── UnsafeBundle           pickle or any file the manifest does not name
│   ├── WrongSchema            it reads columns or windows that nobody here computes
│   └── GoldenMismatch         the loaded model does not give its golden answers
├── StateError                 live state cannot be trusted (a gap, a wrong catalogue)
├── MissingPackage             a library that only this needs is not installed
└── ServiceError               a server we need is down, or its port is taken
    ├── PortTaken
    ├── ServiceDown
    ├── ClockJumped            the wall clock was set: no bar and no decision can be dated
    └── VenueDown              an exchange that gives no bars, now or ever
"""


class BellwetherError(Exception):
    """Base of all; its message says what, how far, and what to do next."""


class InputError(BellwetherError):
    pass


class BadColumns(InputError):
    pass


class BadTimes(InputError):
    pass


class BadValues(InputError):
    pass


class StoredAlready(BadValues):
    pass


class BadShape(InputError):
    pass


class UnreadableFile(InputError):
    pass


class UnknownName(InputError):
    pass


class BlockedError(BellwetherError):
    pass


class QualityBlocked(BlockedError):
    pass


class NotEnoughData(BlockedError):
    pass


class GateRefused(BlockedError):
    pass


class WouldOverwrite(BlockedError):
    pass


class LeaseHeld(BlockedError):
    def __init__(self, told: str, holder: str = "") -> None:
        super().__init__(told)
        self.holder = holder  # who has it, as `site.holder` writes it


class BundleError(BellwetherError):
    pass


class WrongSchema(BundleError):
    pass


class DigestMismatch(BundleError):
    pass


class UnsafeBundle(BundleError):
    pass


class GoldenMismatch(BundleError):
    pass


class StateError(BellwetherError):
    pass


class MissingPackage(BellwetherError):
    pass


class ServiceError(BellwetherError):
    pass


class PortTaken(ServiceError):
    pass


class ServiceDown(ServiceError):
    pass


class ClockJumped(ServiceError):
    pass


class VenueDown(ServiceError):
    pass
