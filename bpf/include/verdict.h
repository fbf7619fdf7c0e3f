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
	HAND_UP = 3,
	DROP_MALFORMED = 4,
	DROP_OVERSIZE = 5,
	DROP_SOURCE_PORT_ZERO = 6,
	DROP_MARTIAN = 7,
	DROP_NOT_WEBRTC = 8,
	DROP_STUN_MALFORMED = 9,
	DROP_STUN_USERNAME = 10,
	DROP_STUN_INTEGRITY = 11,
	DROP_STUN_UNKNOWN_FLOW = 12,
	DROP_UFRAG_FORGED = 13,
	DROP_UFRAG_UNKNOWN_KEY = 14,
	DROP_UFRAG_EXPIRED = 15,
	DROP_UFRAG_CLUSTER = 16,
	DROP_UFRAG_NETWORK = 17,
	DROP_UNKNOWN_FLOW = 18,
	DROP_SPP_SOURCE = 19,
	DROP_SPP_MALFORMED = 20,
	DROP_SPP_PROXY = 21,
	DROP_SPP_CLIENT = 22,
	DROP_SEND_FAILED = 23,
	DROP_FRAGMENT = 24,
	DROP_RATE_LIMITED = 25,
	DROP_NO_WORKER = 26,
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
