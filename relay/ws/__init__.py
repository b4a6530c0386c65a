"""The WebSocket edge: sockets, frames and close codes around ``core.session``."""
