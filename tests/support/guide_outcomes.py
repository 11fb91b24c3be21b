"""Each code block of the guide with what comes of it, and why some are no programs."""

from __future__ import annotations

__all__ = ["NOT_RUN", "OUTCOMES"]

#: Blocks that are run, by name: what the tests of tests/guide see happen.
OUTCOMES = {
    "Creating a WebSocket Server": "makes a server on port 56891 that does not listen yet",
    "Starting the Server": "serves until Ctrl-C",
    "Enable Authentication (Production):": "a server that is made then asks for tokens",
    "Disable Authentication (Testing):": "a server that is made then lets everybody in",
    "Token-Based Auth:": "two ways to send a token; each lets the client in, none is refused with 1008",
    "Origin Validation": "exactly the two origins are allowed",
    "Broadcasting": "each client gets the text, which is no JSON, as it is",
    "JavaScript Client Quick Start": "creates, reads, updates and deletes a user",
    "Create": "resolves with the row and its id",
    "Read": "all rows, the rows that fit, a page of fields",
    "Update": "by id and by filter",
    "Delete": "by id and by filter",
    "Upsert": "updates the row with that address",
    "Command Dispatch": "the function's result; a page; a file",
    "Broadcast Listening": "hears of what another client created; the listener can be removed",
    "Raw Commands": "a command of the program's own answers",
    "Authentication": "two programs, as `const client` stands there twice; both connect",
    "Starting a Service": "PostgreSQL runs and is ready; port and directory are the test's",
    "Stopping a Service": "its process has ended",
    "Checking Service Status": "one status, and all by name",
    "Getting Connection Info": "host, port, database, connection_string and more",
    "Restarting a Service": "runs again",
    "Port Availability Checking": "available, and in use where something listens",
    "WebSocket Configuration:": "all four settings are read",
    "Service Configuration:": "all four settings are read",
    "Example 1: WebSocket Server for Web UI": "serves a MockWalker's data until Ctrl-C",
    "Example 2: JavaScript Client (zBifrost.js)": "two users created and found; a third, of another client, heard of",
    "Example 3: HTML Demo Page": "in Chromium: connects, creates, hears of another page's user, disconnects",
    "Example 4: PostgreSQL Service Management": "starts PostgreSQL, names its address, reads from the host's data",
    "Example 5: Multi-Client Broadcasting (JavaScript)": "two programs, one a file; five messages sent and received",
    "Connection": "two programs, as `const client` stands there twice; both connect and disconnect",
    "CRUD Methods": "five calls, run one by one as names repeat, with values for the parameters",
    "Advanced Methods": "four calls, run one by one as names repeat, with values for the parameters",
    "Broadcast Listening 2": "hears of what another client created; the listener can be removed",
    "Authentication Best Practices": "a server that is made then asks for tokens",
    "Authentication Best Practices 2": "exactly this origin is allowed",
    "Authentication Best Practices 3": "a server that is made then listens on the loopback only",
    "1. Connection Refused": "its Python line prints whether the port is free; its lsof is not run",
    "2. Authentication Required Error": "its export is read; its JavaScript line is that of Authentication",
    "3. Port Already in Use": "its export is read; finding and killing whatever has the port is not for a test to do",
    "4. PostgreSQL Won't Start": "prints the status and restarts PostgreSQL",
    "5. Message Not Reaching Server": "the client logs what it does",
    "JavaScript Client Extensions": "a subclass sends a command of its own",
    "Connection Pooling (JavaScript)": "five clients, used in turn",
    "Auto-Reconnection": "the client is back after the server sent it away",
    "From Legacy zSocket": "the old names work and warn",
    "From Legacy zSocket 2": "the new names work",
    "JavaScript Client": "connects",
}

#: Blocks that are not run, by name: what they are.
NOT_RUN = {
    "Core Components": "a listing of the original's source tree",
    "Message Protocol": "the shape of a request: `command_key` stands for a command",
    "Message Protocol 2": "the shape of replies: `...` is no JSON",
    "Message Processing Pipeline": "the way of a message, in words",
    "Running Tests": "commands of the original's own tests, which this repository does not have",
    "Custom Message Handlers": "a change within the original's class; tests/guide/host/serve.py registers a command",
}
