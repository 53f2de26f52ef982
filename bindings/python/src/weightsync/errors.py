"""Exceptions: one class for each range of statuses, for that is what to decide on."""

from __future__ import annotations

from typing import Optional, Union

from ._ffi import WSYNC_RANK_NONE, wsync_error
from .enums import NativeDomain, Outcome, Status


class WeightsyncError(Exception):
    """A call failed. `str()` of it names the thing and the numbers."""

    #: What the call answered; a plain int where this package does not know it.
    status: Union[Status, int]
    #: The rank that caused the failure, if one did.
    rank: Optional[int]
    #: The error code of a foreign library, verbatim; 0 if there is none.
    native_code: int
    #: Whose code that is.
    native_domain: Union[NativeDomain, int]
    #: What became of this rank's destination memory, if a request failed.
    outcome: Optional[Outcome]

    def __init__(
        self,
        message: str,
        status: int = Status.INTERNAL,
        rank: Optional[int] = None,
        native_code: int = 0,
        native_domain: int = NativeDomain.NONE,
        outcome: Optional[Outcome] = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = _named_status(status)
        self.rank = rank
        self.native_code = native_code
        self.native_domain = _named_domain(native_domain)
        self.outcome = outcome

    def __reduce__(self) -> tuple[object, ...]:
        return (
            type(self),
            (
                self.message,
                self.status,
                self.rank,
                self.native_code,
                self.native_domain,
                self.outcome,
            ),
        )

    def __str__(self) -> str:
        name = self.status.name if isinstance(self.status, Status) else str(self.status)
        return f"{name}: {self.message}"


class CallerError(WeightsyncError, ValueError):
    """The call was wrong and nothing happened: fix the call. -1 to -19."""


class PlanMismatch(WeightsyncError):
    """Layouts, plan and data disagree: describe or plan again. -20 to -39."""


class EnvironmentProblem(WeightsyncError):
    """The installation or the system lacks something. -40 to -59."""


class LibraryProblem(EnvironmentProblem, ImportError):
    """libweightsync.so was not found, or is not the one that is needed."""


class TransferFailed(WeightsyncError):
    """This request failed and nothing else did: try again. -60 to -79."""


class TransportLost(WeightsyncError):
    """The transport is lost: close it and make a new one. -80 to -99."""


class InternalError(WeightsyncError):
    """An invariant of the library is broken: report it, close the object. -100 on."""


def error_class(status: int) -> type[WeightsyncError]:
    """The exception class of `status`, known or not."""
    if status > -20:
        return CallerError
    if status > -40:
        return PlanMismatch
    if status > -60:
        return EnvironmentProblem
    if status > -80:
        return TransferFailed
    if status > -100:
        return TransportLost
    return InternalError


def from_record(status: int, record: wsync_error) -> WeightsyncError:
    """The exception for `status` and the record that came with it."""
    if record.status != status:
        return error_class(status)("no reason was given", status)
    return error_class(status)(
        bytes(record.message).decode("utf-8", "replace") or "no reason was given",
        status,
        None if record.rank == WSYNC_RANK_NONE else record.rank,
        record.native_code,
        record.native_domain,
    )


def invalid(message: str) -> CallerError:
    """A caller's mistake that is seen before the library is called."""
    return CallerError(message, Status.INVALID_ARGUMENT)


def _named_status(status: int) -> Union[Status, int]:
    try:
        return Status(status)
    except ValueError:
        return status


def _named_domain(domain: int) -> Union[NativeDomain, int]:
    try:
        return NativeDomain(domain)
    except ValueError:
        return domain
