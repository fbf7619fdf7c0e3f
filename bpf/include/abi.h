/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What C and Python share: the layout of every map. relay/dataplane/bpf/abi.py is its mirror; tests/abi
 * compares them field by field. Padding is explicit, as BCC would insert fields of its own. Change
 * ABI_VERSION with it.
 */
#ifndef RELAYCTL_ABI_H
#define RELAYCTL_ABI_H

#include <linux/types.h>

#define ABI_VERSION 2

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

/* Our own ufrags are 47 or 63 characters; the last byte stays 0. */
#define UFRAG_BYTES 64

/* What a flow is looked up by; `vip` is the address that packets arrive at. */
struct flow_key {
	struct endpoint client;
	struct endpoint vip;
};

enum flow_flag {
	FLOW_IS_ASSURED = 1,
	FLOW_MEDIA_UP = 2,
	FLOW_MEDIA_DOWN = 4,
	/* The transceiver said goodbye: another session may take the address. */
	FLOW_IS_RELEASED = 8,
};

/* A client's way to its transceiver. Times are CLOCK_MONOTONIC nanoseconds; `up` is client to transceiver. */
struct flow {
	struct endpoint transceiver;
	__u32 flags;
	__u64 created_ns;
	__u64 last_seen_ns;
	__u64 ufrag_seen_ns;
	__u64 down_seen_ns;
	__u64 packets_up;
	__u64 bytes_up;
	__u64 packets_down;
	__u64 bytes_down;
	char server_ufrag[UFRAG_BYTES];
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

/* Written by the supervisor. Prefix masks are of mapped addresses, as they stand in packets. */
struct settings {
	__u32 abi_version;
	/* Clients may come from loopback: everything is on one machine. */
	__u32 loopback_clients;
	/* A digest of the source: another one is another program. */
	__u64 build;
	__u64 hash_key[2];
	/* What one source of packets is: by default an IPv4 address, or an IPv6 /64. */
	__u64 ipv4_source_mask[2];
	__u64 ipv6_source_mask[2];
	/* Packets of no known flow that one source may send. */
	__u64 unknown_per_s;
	__u64 unknown_burst;
	/* A worker that has not beaten for this long gets no packet; if none has, nothing is handed up. */
	__u64 heartbeat_timeout_ns;
	/* The inode of the network namespace whose interfaces have the program. */
	__u64 network_namespace;
	/* What is handed up goes on at its worker's core, where that is possible. */
	__u32 cpumap;
	__u32 pad;
};

/* What became of a packet that was handed up while `cpumap` is on. */
enum core_choice {
	/* Led to its worker's core. All others go on where they arrived: */
	CORE_REDIRECTED = 0,
	/* it is the worker's core; */
	CORE_LOCAL = 1,
	/* its worker is not known, or the core not in the map; */
	CORE_UNKNOWN = 2,
	/* the datagram is too long to be checked here; */
	CORE_TOO_LONG = 3,
	/* its UDP checksum is not complete, or wrong. */
	CORE_CHECKSUM_INCOMPLETE = 4,
	CORE_CHOICE_COUNT,
};

/* Of the worker that beat last. */
struct heartbeat {
	__u64 beat_ns;
};

/* Written by the worker of the slot. */
struct worker {
	__u32 pid;
	__u32 core;
	__u64 started_ns;
	__u64 beat_ns;
};

/* One page: a worker's part of the map is mapped into its memory. */
#define COUNTER_CELLS 512

/* A worker's counters; relay/dataplane/counters.py says which cell is what. */
struct worker_counters {
	__u64 cells[COUNTER_CELLS];
};

/* A token bucket; tokens are counted in billionths, so that integer arithmetic loses nothing. */
struct bucket {
	__u64 nano_tokens;
	__u64 filled_ns;
};

/* What packets of no known flow are counted by: the masked source address. */
struct source_prefix {
	__u8 host[16];
};

/* Key of the trie of transceiver networks. */
struct network {
	__u32 prefix_length;
	__u8 host[16];
};

#endif
