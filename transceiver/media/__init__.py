"""The media path of a session: RTP in and out, the jitter buffer, Opus, reports."""
