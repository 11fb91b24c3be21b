"""A table whose rows share one test, and with it what is set up for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

__all__ = ["for_each", "rows_of_a_test"]


@contextmanager
def rows_of_a_test() -> Iterator[Callable[[str], AbstractContextManager[None]]]:
    """Run every row, whatever becomes of those before it, and fail with all that failed.

    A test for each row takes longer to begin and to end than most rows take to run; a store or a server for each,
    many times as long. ::

        with rows_of_a_test() as row:
            for text in texts:
                with row(text):
                    assert parse(text)
    """
    failed: list[str] = []

    @contextmanager
    def row(name: str) -> Iterator[None]:
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:
            said = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            failed.append(f"{name}: {said}")

    yield row
    if failed:
        pytest.fail("\n".join(failed), pytrace=False)


def for_each(items: Iterable[tuple[Any, ...]]) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Make one test of a check of many things, say files, which tells of all that break the rule."""

    def made(check: Callable[..., None]) -> Callable[[], None]:
        @functools.wraps(check)
        def test() -> None:
            with rows_of_a_test() as row:
                for arguments in items:
                    with row(str(arguments[0])):
                        check(*arguments)

        # pytest would ask for the arguments of the check.
        del test.__wrapped__
        return test

    return made
