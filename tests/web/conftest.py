"""The servers of the tests of pages: one for each module and set of limits, looked over after each test."""

from support.served import forgotten, served

__all__ = ["forgotten", "served"]
