"""Two public sockets a worker and VIP, without XDP: a flood of checks must not fill the queue in which media waits.

A classic BPF program (SO_ATTACH_REUSEPORT_CBPF, which needs no capability) names, for each datagram to a VIP, a socket of the
VIP's SO_REUSEPORT group by its index:

    worker w     a keyed hash of the client's address and port (see SplitKey), scaled to the number of workers
    2 * w        its media socket: first byte 20 to 63 (DTLS) or 128 to 191 (RTP, RTCP)
    2 * w + 1    its check socket: STUN and whatever else comes, an empty datagram too

An index is a place in the order of binding. When a socket is closed the kernel moves the last one of the group into its
place, so close only sockets that no program names any more: these are the last. Where an index has no socket, or there is no
program, the kernel's own hash chooses.

What the kernel gives a program (run_bpf_filter in net/core/sock_reuseport.c): data begins behind the UDP header; the IP header is
at negative offsets; a load beyond the packet ends the program with 0.
"""

import contextlib
import ctypes
import logging
import os
import socket
import struct
from collections.abc import Sequence

from wire.address import Address

logger = logging.getLogger(__name__)

# Multilinear hashing, strongly universal: the upper half of key[0] + sum(key[i] * word[i]) mod 2**32, over 16-bit words with
# random 32-bit keys (Lemire and Kaser, "Strongly universal string hashing is fast", 2014). Words: the port, then the host's.
# It is linear: with some keys neighbours (ports in a row) would all meet one worker. So a keyed permutation of the 16 bits
# follows, which leaves the hash strongly universal: three xors with itself shifted, and between them products with odd numbers.
SplitKey = tuple[int, ...]
_KEY_WORDS = struct.Struct("=12I")
_MIX_SHIFTS = (8, 7, 9)
_MIX_WORDS = (10, 11)  # of the key: 16 bits each, made odd

# asm-generic/socket.h
_SO_ATTACH_REUSEPORT_CBPF, _SO_DETACH_REUSEPORT_BPF = 51, 68
# sock_filter: 2 bytes code, 1 + 1 how many instructions a jump skips if true and if false, 4 bytes operand (linux/filter.h)
_INSTRUCTION = struct.Struct("=HBBI")
# sock_fprog: how many instructions, where they are
_PROGRAM = struct.Struct("@HP")

# Codes (linux/bpf_common.h): A and X are the registers, M the scratch memory, k the operand.
_LD_LENGTH = 0x80  # A = bytes of payload
_LD_HALF = 0x28  # A = 2 bytes at k, in network order
_LD_BYTE = 0x30  # A = 1 byte at k
_LD_HALF_AT_X = 0x48  # A = 2 bytes at X + k
_LD_IMMEDIATE = 0x00  # A = k
_LDX_HEADER_LENGTH = 0xB1  # X = 4 * (the byte at k & 15): an IPv4 header's
_LDX_MEMORY = 0x61  # X = M[k]
_ST = 0x02  # M[k] = A
_ADD_X, _ADD, _MUL = 0x0C, 0x04, 0x24
_XOR_X, _AND = 0xAC, 0x54
_SHIFT_LEFT, _SHIFT_RIGHT = 0x64, 0x74
_JUMP, _JUMP_EQUAL, _JUMP_NOT_BELOW = 0x05, 0x15, 0x35
_A_TO_X = 0x07
_RETURN_A = 0x16

_IP = -0x100000 & 0xFFFF_FFFF  # SKF_NET_OFF: where the IP header begins
_V4_SOURCE, _V6_NEXT_HEADER, _V6_SOURCE, _V6_HEADER_BYTES = 12, 6, 8, 40
_CLASS_CELL = 0

Instruction = tuple[int, int, int, int]


class Split:
    """The programs of one relay; where the kernel refuses one the relay goes on without any."""

    def __init__(self) -> None:
        self._key: SplitKey | None = new_key()
        self._workers = 0

    def worker_of(self, client: Address) -> int | None:
        """Whom this client is led to; None where the kernel's own hash chooses."""
        return worker_of(client, self._workers, self._key) if self._key and self._workers else None

    def lead(self, groups: Sequence[socket.socket], workers: int) -> None:
        """Lead clients to so many workers, in the groups of these sockets."""
        if self._key is None:
            return
        try:
            for group in groups:
                attach(group, workers, self._key)
            self._workers = workers
        except OSError as error:
            self._key = None
            for group in groups:
                with contextlib.suppress(OSError):
                    group.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)
            logger.warning(
                "the kernel refuses the program that sorts packets to sockets (%s): media waits in one queue with STUN, "
                "so a flood of checks can cost calls their packets; the kernel's own hash leads clients to workers",
                error.strerror,
            )


def new_key() -> SplitKey:
    """A secret for one start of a relay."""
    return _KEY_WORDS.unpack(os.urandom(_KEY_WORDS.size))


def worker_of(client: Address, workers: int, key: SplitKey) -> int:
    """Whose clients are at this address and port: 0 to ``workers`` - 1."""
    words = struct.unpack(f"!{len(client.host) // 2}H", client.host)
    total: int = key[0] + sum(k * word for k, word in zip(key[1:], (client.port, *words), strict=False))
    mixed = (total & 0xFFFF_FFFF) >> 16
    first, second, third = _MIX_SHIFTS
    mixed ^= mixed >> first
    mixed = mixed * _odd(key[_MIX_WORDS[0]]) & 0xFFFF
    mixed ^= mixed >> second
    mixed = mixed * _odd(key[_MIX_WORDS[1]]) & 0xFFFF
    mixed ^= mixed >> third
    return mixed * workers >> 16


def _odd(word: int) -> int:
    return word & 0xFFFF | 1


def attach(group: socket.socket, workers: int, key: SplitKey) -> None:
    """Have a program choose in the group of this socket, in place of the one before.

    The sockets 0 to 2 * ``workers`` - 1 of the group must be those named at the top of this file. Raises OSError if the kernel refuses.
    """
    instructions = program(group.family, workers, key)
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*i) for i in instructions))
    description = _PROGRAM.pack(len(instructions), ctypes.addressof(code))
    group.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, description)


def program(family: int, workers: int, key: SplitKey) -> list[Instruction]:
    """The program for sockets of AF_INET or AF_INET6: 44 or 71 instructions, without a loop."""
    source, words = (_V4_SOURCE, 2) if family == socket.AF_INET else (_V6_SOURCE, 8)
    hashing: list[Instruction] = []
    for index in range(words):
        hashing += [
            (_LD_HALF, 0, 0, _IP + source + 2 * index),
            (_MUL, 0, 0, key[2 + index]),
            (_ADD_X, 0, 0, 0),
            (_A_TO_X, 0, 0, 0),
        ]
    return [
        *_store_class(),
        *(_load_port_v4() if family == socket.AF_INET else _load_port_v6()),
        (_MUL, 0, 0, key[1]),
        (_ADD, 0, 0, key[0]),
        (_A_TO_X, 0, 0, 0),
        *hashing,
        (_SHIFT_RIGHT, 0, 0, 16),
        *_mix(key),
        (_MUL, 0, 0, workers),
        (_SHIFT_RIGHT, 0, 0, 16),
        (_SHIFT_LEFT, 0, 0, 1),
        (_LDX_MEMORY, 0, 0, _CLASS_CELL),
        (_ADD_X, 0, 0, 0),
        (_RETURN_A, 0, 0, 0),
    ]


def _mix(key: SplitKey) -> list[Instruction]:
    """See _MIX_SHIFTS."""
    instructions: list[Instruction] = []
    for shift, word in zip(_MIX_SHIFTS, (*_MIX_WORDS, None), strict=True):
        instructions += [(_A_TO_X, 0, 0, 0), (_SHIFT_RIGHT, 0, 0, shift), (_XOR_X, 0, 0, 0)]
        if word is not None:
            instructions += [(_MUL, 0, 0, _odd(key[word])), (_AND, 0, 0, 0xFFFF)]
    return instructions


def _store_class() -> list[Instruction]:
    """0 for media, 1 for all else. The empty datagram has no first byte to load."""
    return [
        (_LD_LENGTH, 0, 0, 0),
        (_JUMP_EQUAL, 5, 0, 0),  # to all else
        (_LD_BYTE, 0, 0, 0),
        (_JUMP_NOT_BELOW, 3, 0, 192),  # to all else
        (_JUMP_NOT_BELOW, 4, 0, 128),  # to media
        (_JUMP_NOT_BELOW, 1, 0, 64),  # to all else
        (_JUMP_NOT_BELOW, 2, 0, 20),  # to media
        (_LD_IMMEDIATE, 0, 0, 1),  # all else
        (_JUMP, 0, 0, 1),
        (_LD_IMMEDIATE, 0, 0, 0),  # media
        (_ST, 0, 0, _CLASS_CELL),
    ]


def _load_port_v4() -> list[Instruction]:
    """The source port, behind a header that may have options."""
    return [(_LDX_HEADER_LENGTH, 0, 0, _IP), (_LD_HALF_AT_X, 0, 0, _IP)]


def _load_port_v6() -> list[Instruction]:
    """The source port; 0 behind extension headers, as no bounded program finds it there.

    So all such packets of one host, which no WebRTC client sends, meet one worker.
    """
    return [
        (_LD_BYTE, 0, 0, _IP + _V6_NEXT_HEADER),
        (_JUMP_EQUAL, 2, 0, socket.IPPROTO_UDP),
        (_LD_IMMEDIATE, 0, 0, 0),
        (_JUMP, 0, 0, 1),
        (_LD_HALF, 0, 0, _IP + _V6_HEADER_BYTES),
    ]
