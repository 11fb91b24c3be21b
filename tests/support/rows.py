"""A table whose rows share one test, and with it what is set up for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

__all__ = ["rows_of_a_test"]


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
