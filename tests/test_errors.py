"""The errors of services: their words and fields."""

from __future__ import annotations

from zcomm import errors
from zcomm.errors import (
    PortInUse,
    ServiceError,
    ServiceStartFailed,
    ServiceStartTimeout,
    UnknownService,
)


def test_errors_say_what_and_how_to_mend_it():
    """The service, the reason, the repair."""
    assert (
        str(PortInUse("redis", 6379, "pid 7 (x)", "choose another"))
        == "redis: port 6379 is in use by pid 7 (x); choose another"
    )
    assert (
        "postgresql, redis" in str(UnknownService("x", ["redis", "postgresql"]))
        and len(str(UnknownService("x" * 999))) < 200
    )
    assert str(ServiceStartTimeout("x", 30.0)).startswith("x: not ready after 30 s; zcomm service logs x")
    error = ServiceStartFailed("x", "why", exit_code=3, output_tail="last", permanent=True)
    assert isinstance(error, ServiceError) and (error.exit_code, error.output_tail, error.permanent) == (
        3,
        "last",
        True,
    )


def test_an_error_of_a_programs_own_stands_for_no_code_of_the_servers():
    """It may be made of anything; what a client is told is an error of zComm's."""

    class Mine(errors.Invalid):
        def __init__(self, *, part: str):
            super().__init__(part)

    found = errors.command_error({"error": "no", "code": Mine.code, "fields": {"a": "b"}})
    assert (type(found), str(found), found.fields) == (errors.Invalid, "no", {"a": "b"})
