"""Verified TLS for the client, and in plain words what went wrong with it."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure

__all__ = ["problem", "verified"]


def verified(host: str, trust_root: Any = None) -> IOpenSSLClientConnectionCreator:
    """Makes TLS connections to one host: the chain must end at ``trust_root``, the name must be the certificate's.

    It is Twisted's own, untouched: its callbacks are the verification, and setting one more takes its place.

    :param host: the name or address that the user asked for.
    :param trust_root: the authorities; the system's when it is ``None``.
    """
    return optionsForClientTLS(host, trustRoot=trust_root)


def problem(reason: Failure, host: str) -> str:
    """The reason why TLS could not be set up; empty when the connection ended otherwise."""
    if reason.check(VerificationError):
        return f"the certificate is not for {host}"
    if not reason.check(SSL.Error):
        return ""
    details = getattr(reason.value, "args", ())
    said = " ".join(str(part) for error in details[0] for part in error) if details else ""
    if "certificate verify failed" in said:
        return "the certificate cannot be trusted: it has expired, or no known authority has signed it"
    return "no TLS could be agreed on"
