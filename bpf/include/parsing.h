/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* One cursor over a frame. Each parser checks the bounds, advances the cursor and returns the type of what
 * follows, or -1.
 */
#ifndef RELAYCTL_PARSING_H
#define RELAYCTL_PARSING_H

#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/udp.h>

#include "abi.h"

/* Every machine that a relay runs on is little-endian. */
#define htons(value) ((__be16)__builtin_bswap16(value))
#define ntohs(value) ((__u16)__builtin_bswap16(value))
#define htonl(value) ((__be32)__builtin_bswap32(value))
#define ntohl(value) ((__u32)__builtin_bswap32(value))

#define MAX_VLAN_TAGS 2
#define IP_FRAGMENT_OFFSET 0x1fff
#define IP_MORE_FRAGMENTS 0x2000
#define IPV6_CLASS_SHIFT 20
#define IPV6_CLASS_AND_LABEL 0x0fffffff

struct cursor {
	void *at;
	void *end;
};

struct vlan_tag {
	__be16 tci;
	__be16 proto;
};

/* A UDP datagram: where it comes from and goes to, and where its payload is. */
struct datagram {
	struct endpoint source;
	struct endpoint destination;
	__u8 *payload;
	__u32 payload_length;
	/* As IPv6 has them, in host order: traffic class (DSCP and ECN) and flow label, which is 0 for IPv4.
	 */
	__u32 class_and_label;
	__u32 hop_limit;
	__be16 tag_proto[MAX_VLAN_TAGS];
	__be16 tag_tci[MAX_VLAN_TAGS];
	/* More fragments follow this first one. */
	__u32 is_fragment;
	/* The lengths in the headers contradict each other or the frame. */
	__u32 is_malformed;
};

static __always_inline int parse_ethernet(struct cursor *cursor, struct datagram *datagram)
{
	struct ethhdr *ethernet = cursor->at;
	__be16 proto;

	if ((void *)(ethernet + 1) > cursor->end)
		return -1;
	cursor->at = ethernet + 1;
	proto = ethernet->h_proto;
#pragma unroll
	for (int i = 0; i < MAX_VLAN_TAGS; i++) {
		struct vlan_tag *tag = cursor->at;

		if (proto != htons(ETH_P_8021Q) && proto != htons(ETH_P_8021AD))
			break;
		if ((void *)(tag + 1) > cursor->end)
			return -1;
		cursor->at = tag + 1;
		datagram->tag_proto[i] = proto;
		datagram->tag_tci[i] = tag->tci;
		proto = tag->proto;
	}
	return ntohs(proto);
}

static __always_inline void map_ipv4(__u8 host[16], __be32 address)
{
	__builtin_memset(host, 0, 10);
	host[10] = 0xff;
	host[11] = 0xff;
	__builtin_memcpy(host + 12, &address, 4);
}

static __always_inline int is_mapped_ipv4(const __u8 host[16])
{
	const __u32 *word = (const __u32 *)host;

	return !word[0] && !word[1] && word[2] == htonl(0xffff);
}

/* Options and later fragments are left to the kernel: a later fragment has no ports, and without the first
 * one, which is dropped, it never becomes a packet.
 */
static __always_inline int parse_ipv4(struct cursor *cursor, struct datagram *datagram, __u32 *length)
{
	struct iphdr *ip = cursor->at;
	__u32 total, fragment;

	if ((void *)(ip + 1) > cursor->end)
		return -1;
	fragment = ntohs(ip->frag_off);
	if (ip->version != 4 || ip->ihl != sizeof(*ip) / 4 || (fragment & IP_FRAGMENT_OFFSET))
		return -1;
	total = ntohs(ip->tot_len);
	datagram->is_fragment = !!(fragment & IP_MORE_FRAGMENTS);
	datagram->is_malformed = total < sizeof(*ip);
	datagram->class_and_label = ip->tos << IPV6_CLASS_SHIFT;
	datagram->hop_limit = ip->ttl;
	map_ipv4(datagram->source.host, ip->saddr);
	map_ipv4(datagram->destination.host, ip->daddr);
	*length = total - sizeof(*ip);
	cursor->at = ip + 1;
	return ip->protocol;
}

/* Extension headers, fragments among them, are left to the kernel. */
static __always_inline int parse_ipv6(struct cursor *cursor, struct datagram *datagram, __u32 *length)
{
	struct ipv6hdr *ip = cursor->at;

	if ((void *)(ip + 1) > cursor->end || ip->version != 6)
		return -1;
	__builtin_memcpy(datagram->source.host, &ip->saddr, 16);
	__builtin_memcpy(datagram->destination.host, &ip->daddr, 16);
	datagram->class_and_label = ntohl(*(__be32 *)ip) & IPV6_CLASS_AND_LABEL;
	datagram->hop_limit = ip->hop_limit;
	*length = ntohs(ip->payload_len);
	cursor->at = ip + 1;
	return ip->nexthdr;
}

/* `length` is what the IP header says is left for UDP. Returns 0. */
static __always_inline int parse_udp(struct cursor *cursor, struct datagram *datagram, __u32 length)
{
	struct udphdr *udp = cursor->at;
	__u32 udp_length;

	if ((void *)(udp + 1) > cursor->end)
		return -1;
	udp_length = ntohs(udp->len);
	datagram->source.port = udp->source;
	datagram->destination.port = udp->dest;
	datagram->payload = (__u8 *)(udp + 1);
	datagram->payload_length = udp_length - sizeof(*udp);
	/* A fragment's UDP length is that of the whole datagram. */
	if (udp_length < sizeof(*udp) || (!datagram->is_fragment && udp_length > length))
		datagram->is_malformed = 1;
	cursor->at = udp + 1;
	return 0;
}

/* Returns 0 for a UDP datagram that can be told whose it is, -1 for everything that the kernel should have.
 */
static __always_inline int parse_datagram(struct cursor *cursor, struct datagram *datagram)
{
	__u32 length = 0;
	int proto = parse_ethernet(cursor, datagram);

	if (proto == ETH_P_IP)
		proto = parse_ipv4(cursor, datagram, &length);
	else if (proto == ETH_P_IPV6)
		proto = parse_ipv6(cursor, datagram, &length);
	else
		return -1;
	if (proto != IPPROTO_UDP)
		return -1;
	return parse_udp(cursor, datagram, length);
}

#endif
