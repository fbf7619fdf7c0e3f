"""The transceiver: owns ICE, DTLS and SRTP of its sessions, all on one UDP socket behind the relays."""
