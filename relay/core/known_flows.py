"""What a worker decides for whole batches of packets: those that an assured flow tells all about.

The same rules as ``forwarding.py``, as XDP has them too (``bpf/include/fastpath.h``); whatever is left out here is decided
there, one by one. tests/relay/test_batches.py compares the two.
"""

import numpy as np
import numpy.typing as npt

from relay.core.assured_flows import Rows
from relay.core.flow_table import FlowTable
from relay.core.forwarding import DTLS_ALERT, FRESH_S, MAX_DATAGRAM_BYTES
from wire.demux import PacketClass, classify

Lengths = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
FirstBytes = npt.NDArray[np.uint8]

_IS_MEDIA: Flags = np.array(
    [classify(bytes((first,))) in (PacketClass.DTLS, PacketClass.RTP) for first in range(256)]
)
_ONE = np.uint64(1)


class KnownFlows:
    """Of a flow table. ``is_shared``: other workers have its flows too, so a flow is known for a moment only."""

    def __init__(self, flows: FlowTable, *, is_shared: bool) -> None:
        self._flows = flows.assured
        self._is_shared = is_shared

    def forward_up(
        self, rows: Rows, first_bytes: FirstBytes, lengths: Lengths, now: float
    ) -> tuple[Flags, npt.NDArray[np.uint32]]:
        """Which of these packets of clients are forwarded, and the numbers of the transceivers of those.

        rows: of ``AssuredFlows.find``. lengths: of the datagrams.
        """
        flows = self._flows
        known = self._known(rows, lengths, now) & _IS_MEDIA[first_bytes]
        if not known.all():
            # A check may move the flow, and what follows it goes the new way.
            known &= ~np.isin(rows, rows[~known & (rows >= 0)])
            rows, lengths = rows[known], lengths[known]
        flows.last_seen[rows] = now
        # A row may be named more than once.
        np.add.at(flows.packets_up, rows, _ONE)
        np.add.at(flows.bytes_up, rows, lengths.astype(np.uint64))
        return known, flows.transceiver[rows]

    def forward_down(
        self,
        rows: Rows,
        senders: npt.NDArray[np.int64],
        first_bytes: FirstBytes,
        lengths: Lengths,
        now: float,
    ) -> tuple[Flags, npt.NDArray[np.uint16]]:
        """Which of these packets of transceivers are forwarded, and the indexes of the VIPs of those.

        senders: numbers of the transceivers that they came from, -1 for others. first_bytes, lengths: behind the header.
        """
        flows = self._flows
        known = self._known(rows, lengths, now) & (flows.transceiver[rows] == senders)
        if not known.all():
            rows, lengths, first_bytes = rows[known], lengths[known], first_bytes[known]
        flows.last_seen[rows] = flows.down_seen_at[rows] = now
        flows.released[rows] = first_bytes == DTLS_ALERT
        np.add.at(flows.packets_down, rows, _ONE)
        np.add.at(flows.bytes_down, rows, lengths.astype(np.uint64))
        return known, flows.vip[rows]

    def _known(self, rows: Rows, lengths: Lengths, now: float) -> Flags:
        # What is no positive number is a very large one without its sign.
        known = (rows >= 0) & ((lengths - 1).view(np.uint64) < MAX_DATAGRAM_BYTES)
        if self._is_shared:
            known &= now - self._flows.last_seen[rows] < FRESH_S
        return known
