"""Bytes on the network: RFC 7983 demux, STUN, sealed ufrag, SPP, admin messages. Pure: no I/O, no clock."""
