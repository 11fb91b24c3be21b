"""The options of a start: where each comes from."""

from __future__ import annotations

import pytest

from zcomm.errors import (
    ConfigError,
    DataDirectoryError,
)
from zcomm.services.declaration import (
    ServiceDeclaration,
)
from zcomm.services.options import read_options


def test_where_options_come_from():
    """Argument, then environment, then declaration; secrets are not printed."""
    declaration = ServiceDeclaration("my-db", port=1000)
    environ = {"MY_DB_PORT": "2000", "MY_DB_DATA_DIR": "/from/environ"}
    assert read_options(declaration, {}, {}).port == 1000
    assert (read_options(declaration, {}, environ).port, str(read_options(declaration, {}, environ).data_dir)) == (
        2000,
        "/from/environ",
    )
    given = read_options(declaration, {"port": 3000, "data_dir": "/given", "password": "hush"}, environ, ("password",))
    assert (given.port, str(given.data_dir)) == (3000, "/given") and "hush" not in repr(given)
    with pytest.raises(ConfigError, match="MY_DB_PORT"):
        read_options(declaration, {}, {"MY_DB_PORT": "many"})
    with pytest.raises(ConfigError, match="has none"):
        read_options(ServiceDeclaration("quiet"), {"port": 80}, {})
    with pytest.raises(DataDirectoryError):
        read_options(declaration, {"data_dir": "x"}, {})
