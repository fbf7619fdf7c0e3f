"""The relay: forwards packets between clients and the transceivers that their ufrags name."""
