"""Which files could be anybody's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.serverprocess import clean_environ

from zcomm.config import make_data_directory, read_text
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


OPENED = """
import sys
from pathlib import Path
from zcomm.config import make_data_directory
from zcomm.reading import open_to_everybody
volume = Path(sys.argv[1])
make_data_directory(volume / "zcomm")
print(repr(open_to_everybody(volume / "zcomm" / "file")), repr(open_to_everybody(volume)))
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="only root mounts something")
def test_b26_a_volume_of_a_container_is_an_ordinary_place(tmp_path: Path):
    """It is open to everybody where nobody else is; it is no data directory itself, but may hold one."""
    words = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o mode=0777 tmpfs "$1" && exec "$2" -c "$3" "$1"', "sh"]
    done = subprocess.run(
        [*words, str(tmp_path), sys.executable, OPENED],
        env=clean_environ(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip("nothing can be mounted here")
    inside, itself = done.stdout.split(" ", 1)
    assert inside == "''" and "everybody may put files into" in itself, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_b26_roots_data_is_in_no_directory_that_somebody_made_in_tmp(tmp_path: Path):
    """A name in it can be taken by anybody before; elsewhere it is a volume, and whoever that belongs to is fine."""
    place = tmp_path / "zcomm"
    place.mkdir(mode=0o700)
    os.chown(place, 4711, 4711)
    make_data_directory(place)
    tmp_path.chmod(0o1777)
    with pytest.raises(ConfigError, match=r"belongs to somebody else \(uid 4711\)"):
        make_data_directory(place)
