"""The one error of every parser in this package, and the closed list of faults that it can name."""

from enum import StrEnum


class WireFault(StrEnum):
    """What is wrong with bytes from the network. The names are stable: verdicts and metrics are derived from them."""

    STUN_MALFORMED = "stun_malformed"
    STUN_FINGERPRINT = "stun_fingerprint"
    STUN_USERNAME = "stun_username"
    UFRAG_FORGED = "ufrag_forged"
    UFRAG_UNKNOWN_KEY = "ufrag_unknown_key"
    SPP_MALFORMED = "spp_malformed"
    TOKEN_FORGED = "token_forged"
    ADMIN_MALFORMED = "admin_malformed"
    RECORD_MALFORMED = "record_malformed"
    RECORD_FORGED = "record_forged"
    RTP_MALFORMED = "rtp_malformed"
    RTCP_MALFORMED = "rtcp_malformed"
    SCTP_MALFORMED = "sctp_malformed"


class WireError(ValueError):
    """Bytes from the network that cannot be used; the sender is at fault, never the caller."""

    def __init__(self, fault: WireFault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault
