/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* New headers in front of a payload: Ethernet with the tags of the path, IPv4 or IPv6, UDP.
 *
 * Headers are written in whole words that are put together in registers. Reading back what was written in
 * pieces, for a checksum, would cost more than all of the writing.
 */
#ifndef RELAYCTL_REWRITING_H
#define RELAYCTL_REWRITING_H

#include "abi.h"
#include "checksum.h"
#include "parsing.h"

#define MACS_BYTES 12
#define TAG_BYTES 4
#define TAGS_MASK 0xf
#define IP_DONT_FRAGMENT 0x4000

/* What follows MACs and tags. */
struct ipv4_headers {
	__be16 proto;
	__u32 ip[5];
	__u64 udp;
} __attribute__((packed));

struct ipv6_headers {
	__be16 proto;
	__u32 ip[2];
	__u8 source[16];
	__u8 destination[16];
	__u64 udp;
} __attribute__((packed));

/* What the headers say. `length` is that of UDP, its header with it. */
struct envelope {
	const struct link_path *path;
	const struct endpoint *source;
	const struct endpoint *destination;
	__u32 class_and_label;
	__u32 hop_limit;
	__u32 length;
};

static __always_inline __u32 tag_bytes(const struct link_path *path)
{
	return (!!path->tag_proto[0] + !!path->tag_proto[1]) * TAG_BYTES;
}

static __always_inline __u32 ip_bytes(const struct endpoint *endpoint)
{
	return is_mapped_ipv4(endpoint->host) ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
}

static __always_inline __u32 last_word(const __u8 host[16])
{
	return ((const __u32 *)host)[3];
}

/* Each tag is its TCI and the type of what follows. Returns the place behind MACs and tags, or 0. */
static __always_inline void *write_link_header(void *data, void *end, const struct link_path *path)
{
	__u64 tags = tag_bytes(path);
	__be16 *at = data + MACS_BYTES;

	if (data + MACS_BYTES + MAX_VLAN_TAGS * TAG_BYTES > end)
		return 0;
	__builtin_memcpy(data, path->to_mac, 6);
	__builtin_memcpy(data + 6, path->from_mac, 6);
	if (tags) {
		at[0] = path->tag_proto[0];
		at[1] = path->tag_tci[0];
		at[2] = path->tag_proto[1];
		at[3] = path->tag_tci[1];
	}
	keep_within(tags, TAGS_MASK);
	return data + MACS_BYTES + tags;
}

static __always_inline __u64 udp_words(const struct envelope *envelope, __u16 check)
{
	return (__u64)envelope->source->port | (__u64)envelope->destination->port << 16 |
	       (__u64)htons(envelope->length) << 32 | (__u64)check << 48;
}

/* RFC 791 section 3.1. Never fragmented on its way: what is too long has been handed up. */
static __always_inline void write_ipv4(struct ipv4_headers *headers, const struct envelope *envelope,
				       __u16 check)
{
	__u32 first = 0x45 | (envelope->class_and_label >> IPV6_CLASS_SHIFT & 0xff) << 8 |
		      (__u32)htons(envelope->length + sizeof(struct iphdr)) << 16;
	__u32 second = (__u32)htons(IP_DONT_FRAGMENT) << 16;
	__u32 third = envelope->hop_limit | IPPROTO_UDP << 8;
	__u32 source = last_word(envelope->source->host),
	      destination = last_word(envelope->destination->host);
	__u16 sum = fold((__u64)first + second + third + source + destination);

	headers->proto = htons(ETH_P_IP);
	headers->ip[0] = first;
	headers->ip[1] = second;
	headers->ip[2] = third | (__u32)(__u16)~sum << 16;
	headers->ip[3] = source;
	headers->ip[4] = destination;
	headers->udp = udp_words(envelope, check);
}

/* RFC 8200 section 3. */
static __always_inline void write_ipv6(struct ipv6_headers *headers, const struct envelope *envelope,
				       __u16 check)
{
	headers->proto = htons(ETH_P_IPV6);
	headers->ip[0] = htonl(6 << 28 | envelope->class_and_label);
	headers->ip[1] = htons(envelope->length) | IPPROTO_UDP << 16 | envelope->hop_limit << 24;
	__builtin_memcpy(headers->source, envelope->source->host, 16);
	__builtin_memcpy(headers->destination, envelope->destination->host, 16);
	headers->udp = udp_words(envelope, check);
}

#endif
