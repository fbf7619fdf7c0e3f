"""Certificates of a Redis on loopback: an authority of the test's own, and what it signed."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.redis.server import TlsFiles


def make_tls_files(directory: Path, host: str = "127.0.0.1", *, mutual: bool = False) -> TlsFiles:
    """For a server at ``host``; ``mutual``: it asks clients for a certificate, too."""
    directory.mkdir(exist_ok=True)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "relayctl test authority")])
    server = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "relayctl test redis")])
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    root = (
        _builder(authority, authority, authority_key)
        .add_extension(constraints, critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))])
    certificate = (
        _builder(server, authority, key)
        .add_extension(names, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    files = [directory / name for name in ("ca.pem", "redis.pem", "redis-key.pem")]
    files[0].write_bytes(root.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[2].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return TlsFiles(*files, mutual=mutual)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )
