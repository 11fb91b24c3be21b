"""A process that keeps a network namespace alive, and makes sockets in it for whoever has its input's other end."""

import socket
import sys


def main() -> None:
    """A socket for each byte: a socket stays in the namespace that it was made in, whoever has it."""
    with socket.socket(fileno=sys.stdin.fileno()) as asker:
        asker.sendall(b"+")
        while asker.recv(1):
            with socket.socket() as made:
                socket.send_fds(asker, [b"+"], [made.fileno()])


if __name__ == "__main__":
    main()
