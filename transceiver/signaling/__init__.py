"""Signaling over HTTP: WHIP, the same exchange over a WebSocket, the demo page."""
