/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is in a datagram: STUN (RFC 8489), and the SPP header of the fleet side. */
#ifndef RELAYCTL_WEBRTC_H
#define RELAYCTL_WEBRTC_H

#include "abi.h"
#include "checksum.h"

#define STUN_HEADER_BYTES 20
#define STUN_COOKIE 0x2112a442
#define STUN_BINDING_REQUEST 0x0001
#define STUN_USERNAME 0x0006
/* USERNAME is among the first ones of every ICE agent's check. */
#define MAX_STUN_ATTRIBUTES 8
/* Of a sealed ufrag; a colon and the client's follow. */
#define MIN_UFRAG_CHARS 47
#define SPP_MAGIC 0x56ec
#define SPP_HEADER_BYTES 38
#define DTLS_ALERT 21
#define MAX_DATAGRAM_BYTES 2048
#define DATAGRAM_MASK 0x7ff

struct stun_header {
	__be16 type;
	__be16 length;
	__be32 cookie;
};

struct stun_attribute {
	__be16 type;
	__be16 length;
};

/* Cloudflare's Simple Proxy Protocol for UDP. */
struct spp_header {
	__be16 magic;
	__u8 client[16];
	__u8 proxy[16];
	__be16 client_port;
	__be16 proxy_port;
} __attribute__((packed));

/* RFC 7983 section 7. */
static __always_inline int is_media(__u8 first)
{
	return (first >= 20 && first <= 63) || (first >= 128 && first <= 191);
}

static __always_inline int is_stun(__u8 first)
{
	return first <= 3;
}

/* `length` is that of the datagram. */
static __always_inline int has_stun_header(const struct stun_header *stun, const void *end, __u32 length)
{
	return length >= STUN_HEADER_BYTES && (const void *)(stun + 1) <= end &&
	       stun->cookie == htonl(STUN_COOKIE) && !(ntohs(stun->length) & 3) &&
	       ntohs(stun->length) + STUN_HEADER_BYTES == length;
}

/* Whether this is a Binding request of the session with that ufrag: the server's comes first in USERNAME (RFC
 * 8445 section 7.2.2). `stun` has a good header. Who writes other characters around the tag is refused by the
 * transceiver, as who writes a wrong MESSAGE-INTEGRITY is.
 */
static __always_inline int is_check_of(const struct stun_header *stun, const void *end, __u64 length,
				       const char tag[UFRAG_TAG_BYTES])
{
	__u64 offset = STUN_HEADER_BYTES;

	if (stun->type != htons(STUN_BINDING_REQUEST))
		return 0;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < MAX_STUN_ATTRIBUTES; i++) {
		const struct stun_attribute *attribute;
		__u64 size;

		keep_within(offset, DATAGRAM_MASK);
		attribute = (const void *)stun + offset;
		if ((const void *)(attribute + 1) > end)
			return 0;
		size = ntohs(attribute->length);
		offset += sizeof(*attribute) + ((size + 3) & ~3ULL);
		if (offset > length)
			return 0;
		if (attribute->type == htons(STUN_USERNAME)) {
			const char *found = (const char *)(attribute + 1) + UFRAG_TAG_OFFSET;

			return size > MIN_UFRAG_CHARS && (const void *)(found + UFRAG_TAG_BYTES) <= end &&
			       *(const __u64 *)found == *(const __u64 *)tag;
		}
	}
	return 0;
}

#endif
