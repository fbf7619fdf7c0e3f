/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What can happen to a packet: the same list as relay/core/verdict.py, which says what each means to an
 * operator; tests/abi compares the two. The number is the index of the counter, the lower-case name is the
 * metric label.
 */
#ifndef RELAYCTL_VERDICT_H
#define RELAYCTL_VERDICT_H

enum verdict {
	FORWARD_STUN = 0,
	FORWARD_FLOW = 1,
	FORWARD_CLIENT = 2,
	DROP_MALFORMED = 3,
	DROP_OVERSIZE = 4,
	DROP_SOURCE_PORT_ZERO = 5,
	DROP_MARTIAN = 6,
	DROP_NOT_WEBRTC = 7,
	DROP_STUN_MALFORMED = 8,
	DROP_STUN_USERNAME = 9,
	DROP_STUN_INTEGRITY = 10,
	DROP_STUN_UNKNOWN_FLOW = 11,
	DROP_UFRAG_FORGED = 12,
	DROP_UFRAG_UNKNOWN_KEY = 13,
	DROP_UFRAG_EXPIRED = 14,
	DROP_UFRAG_CLUSTER = 15,
	DROP_UFRAG_NETWORK = 16,
	DROP_UNKNOWN_FLOW = 17,
	DROP_SPP_SOURCE = 18,
	DROP_SPP_MALFORMED = 19,
	DROP_SPP_PROXY = 20,
	DROP_SPP_CLIENT = 21,
	DROP_SEND_FAILED = 22,
	VERDICT_COUNT,
};

enum flow_event {
	FLOW_CREATED = 0,
	FLOW_ASSURED = 1,
	FLOW_EXPIRED = 2,
	FLOW_EVICTED = 3,
	FLOW_CONTESTED = 4,
	FLOW_MOVED = 5,
	FLOW_REFUSED = 6,
	FLOW_ADOPTED = 7,
	FLOW_EVENT_COUNT,
};

#endif
