"""The frames of the WebSocket protocol, by family (PROTOCOL.md section 5)."""
