/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* New headers in front of a payload: Ethernet with the tags of the path, IPv4 or IPv6, UDP, SPP.
 *
 * They are put together in registers and written in whole words, wherever these begin: a packed struct would
 * be written byte by byte, and what is read back of what was written in other pieces waits for it.
 */
#ifndef RELAYCTL_REWRITING_H
#define RELAYCTL_REWRITING_H

#include "abi.h"
#include "checksum.h"
#include "parsing.h"
#include "webrtc.h"

#define MACS_BYTES 12
#define TAG_BYTES 4
#define TAGS_MASK 0xf
#define IP_DONT_FRAGMENT 0x4000
/* From the type of Ethernet to UDP's payload. */
#define IPV4_HEADERS_BYTES 30
#define IPV6_HEADERS_BYTES 50

/* What the headers say. `length` is that of UDP, its header with it. */
struct envelope {
	const struct link_path *path;
	const struct endpoint *source;
	const struct endpoint *destination;
	__u32 class_and_label;
	__u32 hop_limit;
	__u32 length;
};

static __always_inline void put16(void *at, __u16 value)
{
	*(__u16 *)at = value;
}

static __always_inline void put32(void *at, __u32 value)
{
	*(__u32 *)at = value;
}

static __always_inline void put_host(void *at, const __u8 host[16])
{
	const __u32 *words = (const __u32 *)host;

	put32(at, words[0]);
	put32(at + 4, words[1]);
	put32(at + 8, words[2]);
	put32(at + 12, words[3]);
}

static __always_inline __u32 tag_bytes(const struct link_path *path)
{
	return (!!path->tag_proto[0] + !!path->tag_proto[1]) * TAG_BYTES;
}

static __always_inline __u32 header_bytes(const struct endpoint *endpoint)
{
	return is_mapped_ipv4(endpoint->host) ? IPV4_HEADERS_BYTES : IPV6_HEADERS_BYTES;
}

static __always_inline __u32 last_word(const __u8 host[16])
{
	return ((const __u32 *)host)[3];
}

/* Each tag is its TCI and the type of what follows. Returns the place behind MACs and tags, or 0. */
static __always_inline void *write_link_header(void *data, void *end, const struct link_path *path)
{
	const __u32 *macs = (const __u32 *)path->to_mac;
	__u64 tags = tag_bytes(path);

	if (data + MACS_BYTES + MAX_VLAN_TAGS * TAG_BYTES > end)
		return 0;
	put32(data, macs[0]);
	put32(data + 4, macs[1]);
	put32(data + 8, macs[2]);
	if (tags) {
		put16(data + MACS_BYTES, path->tag_proto[0]);
		put16(data + MACS_BYTES + 2, path->tag_tci[0]);
		put16(data + MACS_BYTES + 4, path->tag_proto[1]);
		put16(data + MACS_BYTES + 6, path->tag_tci[1]);
	}
	keep_within(tags, TAGS_MASK);
	return data + MACS_BYTES + tags;
}

static __always_inline void write_udp(void *at, const struct envelope *envelope, __u16 check)
{
	put32(at, envelope->source->port | (__u32)envelope->destination->port << 16);
	put32(at + 4, htons(envelope->length) | (__u32)check << 16);
}

/* RFC 791 section 3.1. Never fragmented on its way: what is too long has been handed up. */
static __always_inline void write_ipv4(void *at, const struct envelope *envelope, __u16 check)
{
	__u32 first = 0x45 | (envelope->class_and_label >> IPV6_CLASS_SHIFT & 0xff) << 8 |
		      (__u32)htons(envelope->length + sizeof(struct iphdr)) << 16;
	__u32 second = (__u32)htons(IP_DONT_FRAGMENT) << 16;
	__u32 third = envelope->hop_limit | IPPROTO_UDP << 8;
	__u32 source = last_word(envelope->source->host);
	__u32 destination = last_word(envelope->destination->host);
	__u16 sum = fold((__u64)first + second + third + source + destination);

	put16(at, htons(ETH_P_IP));
	put32(at + 2, first);
	put32(at + 6, second);
	put32(at + 10, third | (__u32)(__u16)~sum << 16);
	put32(at + 14, source);
	put32(at + 18, destination);
	write_udp(at + 22, envelope, check);
}

/* RFC 8200 section 3. */
static __always_inline void write_ipv6(void *at, const struct envelope *envelope, __u16 check)
{
	put16(at, htons(ETH_P_IPV6));
	put32(at + 2, htonl(6 << 28 | envelope->class_and_label));
	put32(at + 6, htons(envelope->length) | IPPROTO_UDP << 16 | envelope->hop_limit << 24);
	put_host(at + 10, envelope->source->host);
	put_host(at + 26, envelope->destination->host);
	write_udp(at + 42, envelope, check);
}

static __always_inline void write_spp(void *at, const struct endpoint *client, const struct endpoint *proxy)
{
	put16(at, htons(SPP_MAGIC));
	put_host(at + 2, client->host);
	put_host(at + 18, proxy->host);
	put32(at + 34, client->port | (__u32)proxy->port << 16);
}

#endif
