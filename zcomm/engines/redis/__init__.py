"""The engine on Redis or Valkey, which carries topics and broadcasts between processes and machines."""
