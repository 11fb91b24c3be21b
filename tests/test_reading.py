"""Which files could be anybody's."""

from __future__ import annotations

from pathlib import Path

import pytest

from zcomm.config import read_text
from zcomm.errors import ConfigError
from zcomm.reading import open_to_everybody


def test_b26_what_everybody_may_change(tmp_path: Path):
    """A file that is open itself, and one that a directory on its way, or on that of a link to it, lets be replaced."""
    here, way = tmp_path / "here", tmp_path / "a way"
    here.mkdir()
    way.mkdir()
    file, link = here / "file", way / "link"
    file.write_text("a: 1\n")
    link.symlink_to(file)
    for mode in (0o600, 0o640, 0o644, 0o664, 0o775):
        file.chmod(mode)
        assert open_to_everybody(file) == open_to_everybody(link) == ""
        assert read_text(link, "--x") == "a: 1\n"
    for opened, mode, what in (
        (file, 0o666, "write to"),
        (here, 0o777, "put files into"),
        (way, 0o757, "put files into"),
    ):
        before = opened.stat().st_mode
        opened.chmod(mode)
        reason = f"everybody may {what} {opened} (mode {mode:04o}); run: chmod o-w "
        assert open_to_everybody(link).startswith(reason)
        assert open_to_everybody(file).startswith(reason) == (opened != way)
        with pytest.raises(ConfigError, match="--x: .* cannot be trusted: everybody may"):
            read_text(link, "--x")
        opened.chmod(before)


def test_b26_a_directory_as_tmp_is_an_ordinary_one(tmp_path: Path):
    """Nobody takes the place of what others have there; but it is no place of one's own."""
    tmp_path.chmod(0o1777)
    (tmp_path / "file").touch(mode=0o644)
    assert open_to_everybody(tmp_path / "file") == open_to_everybody(tmp_path / "not there yet") == ""
    assert "put files into" in open_to_everybody(tmp_path)
