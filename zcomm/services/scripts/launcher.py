"""``launcher.py DIRECTORY UID GID GROUPS PROGRAM ARGUMENT…``: become that program in a session of its own.

Run as a script by :mod:`zcomm.services.supervision.launch` where the system has no ``setsid`` or ``setpriv``. It
imports nothing of zComm, so that it starts in a few milliseconds, and keeps its pid. ``-`` for the three
account words means: stay who you are.
"""

import os
import sys


def main(argv: list[str]) -> None:
    """Replace this process by the program; exit status 127 when that fails."""
    directory, uid, gid, groups, *command = argv
    try:
        os.chdir(directory)
        os.umask(0o077)
        os.setsid()
        if uid != "-":
            os.setgroups([int(group) for group in groups.split(",")])
            os.setgid(int(gid))
            os.setuid(int(uid))
        os.execv(command[0], command)  # noqa: S606 (that is its purpose; the words come from zComm)
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        os._exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
