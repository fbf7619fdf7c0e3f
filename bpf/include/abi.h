/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What C and Python share: the layout of every map. relay/dataplane/bpf/abi.py is its mirror; tests/abi
 * compares them field by field. Padding is explicit, as BCC would insert fields of its own. Change
 * ABI_VERSION with it.
 */
#ifndef RELAYCTL_ABI_H
#define RELAYCTL_ABI_H

#include <linux/types.h>

#define ABI_VERSION 1

/* Sockets of one group, and so workers of one relay. */
#define MAX_SLOTS 64
/* Groups of sockets that receive together: one a VIP, one an address family of the fleet side. */
#define MAX_GROUPS 16
/* A prime well above 100 times the slots of a usual relay, so that shares differ by less than 1 % (Maglev,
 * section 5.3). */
#define STEERING_SIZE 16381

/* An IP address (IPv4 mapped into IPv6, RFC 4291 section 2.5.5.2) and a port, as they stand in packets. */
struct endpoint {
	__u8 host[16];
	__be16 port;
	__u8 pad[2];
};

/* What a flow is looked up by. */
struct flow_key {
	struct endpoint client;
	struct endpoint vip;
};

/* A client's way to its transceiver. Times are CLOCK_MONOTONIC nanoseconds; `up` is client to transceiver. */
struct flow {
	struct endpoint transceiver;
	__u32 is_assured;
	__u64 ufrag_hash;
	__u64 created_ns;
	__u64 last_seen_ns;
	__u64 ufrag_seen_ns;
	__u64 packets_up;
	__u64 bytes_up;
	__u64 packets_down;
	__u64 bytes_down;
};

enum side {
	SIDE_PUBLIC = 1,
	SIDE_FLEET = 2,
};

/* An address and port that this relay listens on. */
struct listener {
	__u32 side;
	__u32 group;
};

/* Set once by the loader, before anything is attached. */
struct settings {
	__u32 abi_version;
	/* Clients may come from loopback: everything is on one machine. */
	__u32 loopback_clients;
	__u64 hash_key[2];
	/* Packets of no known flow that one source prefix may send. */
	__u64 unknown_per_s;
	__u64 unknown_burst;
	/* Without a heartbeat of any worker for this long, nothing is handed up. */
	__u64 heartbeat_timeout_ns;
};

/* Written by workers. */
struct heartbeat {
	__u64 beat_ns;
};

/* A token bucket; tokens are counted in billionths, so that integer arithmetic loses nothing. */
struct bucket {
	__u64 nano_tokens;
	__u64 filled_ns;
};

/* What packets of no known flow are counted by: an IPv4 address, or the /64 of an IPv6 one. */
struct source_prefix {
	__u8 host[16];
};

/* Key of the trie of transceiver networks. */
struct network {
	__u32 prefix_length;
	__u8 host[16];
};

#endif
