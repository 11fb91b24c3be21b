"""The supervision of server processes: launch, watch, restart, stop and recognition after a restart of zComm."""
