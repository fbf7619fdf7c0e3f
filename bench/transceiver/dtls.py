"""A caller's end of DTLS-SRTP without a socket or a task: datagrams in, datagrams out, then keys."""

from aiortc import RTCCertificate
from aiortc.rtcdtlstransport import SRTP_PROFILES, SRTPProtectionProfile
from OpenSSL import SSL
from pylibsrtp import Policy, Session

# Enough for one record; flights with an ECDSA certificate are shorter.
_DATAGRAM_BYTES = 1400
# https://www.rfc-editor.org/rfc/rfc5764#section-4.2
_LABEL = b"EXTRACTOR-dtls_srtp"


class Certificate:
    """One for all callers of a process, as ``a=fingerprint`` names it."""

    def __init__(self) -> None:
        certificate = RTCCertificate.generateCertificate()
        self.fingerprint = next(
            f"{one.algorithm} {one.value}"
            for one in certificate.getFingerprints()
            if one.algorithm == "sha-256"
        )
        self.context = certificate._create_ssl_context(SRTP_PROFILES)


class DtlsServer:
    """``a=setup:passive``: the other side begins, and sends again what was lost."""

    def __init__(self, certificate: Certificate) -> None:
        self._ssl = SSL.Connection(certificate.context)
        self._ssl.set_accept_state()
        self.is_done = False
        self.profile = ""
        self.outgoing: Session | None = None
        self.incoming: Session | None = None

    def receive(self, datagram: bytes) -> list[bytes]:
        """What to send now. Raises OpenSSL's errors for a handshake that failed."""
        self._ssl.bio_write(datagram)
        if not self.is_done:
            try:
                self._ssl.do_handshake()
            except SSL.WantReadError:
                pass
            else:
                self._finish()
        return self._written()

    def close(self) -> list[bytes]:
        """The datagrams that say goodbye."""
        try:
            self._ssl.shutdown()
        except SSL.Error:
            return []
        return self._written()

    def _finish(self) -> None:
        chosen = self._ssl.get_selected_srtp_profile()
        [profile] = [one for one in SRTP_PROFILES if one.openssl_profile == chosen]
        self.profile = chosen.decode()
        length = 2 * (profile.key_length + profile.salt_length)
        keys = self._ssl.export_keying_material(_LABEL, length)
        # https://www.rfc-editor.org/rfc/rfc5764#section-4.2: the client's are first
        self.incoming = _session(profile, keys, 0, Policy.SSRC_ANY_INBOUND)
        self.outgoing = _session(profile, keys, 1, Policy.SSRC_ANY_OUTBOUND)
        self.is_done = True

    def _written(self) -> list[bytes]:
        made = []
        while True:
            try:
                made.append(self._ssl.bio_read(_DATAGRAM_BYTES))
            except SSL.WantReadError:
                return made


def _session(profile: SRTPProtectionProfile, keys: bytes, index: int, ssrc_type: int) -> Session:
    policy = Policy(
        key=profile.get_key_and_salt(keys, index),
        ssrc_type=ssrc_type,
        srtp_profile=profile.libsrtp_profile,
    )
    policy.allow_repeat_tx = False
    policy.window_size = 1024
    return Session(policy)
