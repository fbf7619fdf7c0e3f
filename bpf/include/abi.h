/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What C and Python share: the layout of every map. relay/dataplane/bpf/abi.py is its mirror; tests/abi
 * compares them field by field. Padding is explicit, as BCC would insert fields of its own. Change
 * ABI_VERSION with it.
 */
#ifndef RELAYCTL_ABI_H
#define RELAYCTL_ABI_H

#include <linux/types.h>

#define ABI_VERSION 5

/* Sockets of one group, and so workers of one relay. */
#define MAX_SLOTS 64
/* Groups of sockets that receive together: one a VIP, one an address family of the fleet side. */
#define MAX_GROUPS 16
/* A prime well above 100 times the slots of a usual relay, so that shares differ by less than 1 % (Maglev,
 * section 5.3). */
#define STEERING_SIZE 16381
/* Hosts with transceivers. */
#define MAX_NEXT_HOPS 4096

/* An IP address (IPv4 mapped into IPv6, RFC 4291 section 2.5.5.2) and a port, as they stand in packets. */
struct endpoint {
	__u8 host[16];
	__be16 port;
	__u8 pad[2];
};

/* Characters of a sealed ufrag that tell it from others: 48 bits of AES-SIV's tag, behind the key id. */
#define UFRAG_TAG_OFFSET 2
#define UFRAG_TAG_BYTES 8

/* What a flow is looked up by; `group` is that of the listener that the client's packets arrive at. */
struct flow_key {
	__u8 client_host[16];
	__be16 client_port;
	__u16 group;
};

enum flow_flag {
	FLOW_IS_ASSURED = 1,
	FLOW_MEDIA_UP = 2,
	FLOW_MEDIA_DOWN = 4,
	/* The transceiver said goodbye: another session may take the address. */
	FLOW_IS_RELEASED = 8,
};

/* How a frame gets to a neighbour: out of which interface, with which addresses and VLAN tags, the outer one
 * first. `ifindex` is 0 where none is known, `tag_proto` where there is no tag. MACs and tags stand as in
 * frames.
 */
struct link_path {
	__u32 ifindex;
	__u8 to_mac[6];
	__u8 from_mac[6];
	__be16 tag_proto[2];
	__be16 tag_tci[2];
};

/* A client's way to its transceiver. Times are CLOCK_MONOTONIC nanoseconds; `up` is client to transceiver.
 * With its key and 48 bytes of the kernel's an entry is three cache lines. XDP writes `client_path`, counts
 * and times of what it forwards, and FLOW_IS_RELEASED; a worker adds to the counts what it has forwarded.
 */
struct flow {
	struct endpoint transceiver;
	__u32 flags;
	struct link_path client_path;
	__u64 last_seen_ns;
	__u64 packets_up;
	__u64 bytes_up;
	__u64 packets_down;
	__u64 bytes_down;
	__u64 down_seen_ns;
	__u64 ufrag_seen_ns;
	__u64 created_ns;
	char ufrag_tag[UFRAG_TAG_BYTES];
};

/* Key of the way to a transceiver's host. */
struct host {
	__u8 address[16];
};

/* Written by the supervisor, as routes, neighbours and links are now. `mtu` is that of the IP packet. */
struct next_hop {
	struct link_path path;
	__u32 mtu;
	__u32 pad;
};

enum side {
	SIDE_PUBLIC = 1,
	SIDE_FLEET = 2,
};

/* What forwarded bytes are counted by. */
enum direction {
	DIRECTION_UP = 0,
	DIRECTION_DOWN = 1,
	DIRECTION_COUNT,
};

/* An address and port that this relay listens on, in the order of their groups of sockets. `told` is the
 * VIP that clients know a public one by: the same address, or another one behind a 1:1 NAT.
 */
struct listener {
	struct endpoint listen;
	struct endpoint told;
	/* 0 behind the last one. */
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
	/* Where transceivers send to; port 0 where the fleet has no address of the family. */
	struct endpoint fleet_ipv4;
	struct endpoint fleet_ipv6;
	/* What is handed up goes on at its worker's core, where that is possible. */
	__u32 cpumap;
	/* Assured flows are forwarded here. */
	__u32 fastpath;
	/* Of the interfaces with the program, the smallest: what is longer is handed up. */
	__u32 mtu;
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
