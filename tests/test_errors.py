"""The errors of services: their words and fields."""

from __future__ import annotations

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
