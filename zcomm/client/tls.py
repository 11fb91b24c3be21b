"""Verified TLS for the client, and in plain words what is wrong with a certificate."""
from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["Verified"]

#: OpenSSL's reasons (X509_V_ERR_*) that a user can do something about.
_REASONS = {
    9: "is not valid yet", 10: "has expired", 18: "is self-signed", 19: "is of a chain that ends in an unknown authority",
    20: "is of an unknown authority", 21: "cannot be verified", 23: "has been revoked",
}


@implementer(IOpenSSLClientConnectionCreator)
class Verified:
    """Makes TLS connections to one host: the chain must end at ``trust_root``, the name must be the certificate's.

    :param host: the name or address that the user asked for.
    :param trust_root: the authorities; the system's when it is ``None``.
    """

    def __init__(self, host: str, trust_root: Any = None):
        self._host = host
        self._options = optionsForClientTLS(host, trustRoot=trust_root)
        self._reason = ""

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """A connection whose verification tells why it fails."""
        self._reason = ""
        connection = self._options.clientConnectionForTLS(tlsProtocol)
        connection.set_verify(SSL.VERIFY_PEER, self._verified)
        return connection

    def _verified(self, connection: SSL.Connection, certificate: Any, number: int, depth: int, good: int) -> bool:
        if not good and not self._reason:
            self._reason = _REASONS.get(number, f"was refused (OpenSSL error {number})")
        return bool(good)

    def problem(self, reason: Failure) -> str:
        """What kept TLS from being set up; empty when that is not how the connection ended."""
        if reason.check(VerificationError):
            return f"the certificate is not for {self._host}"
        if reason.check(SSL.Error) and self._reason:
            return f"the certificate {self._reason}"
        if reason.check(SSL.Error):
            return "no TLS could be agreed on"
        return ""
