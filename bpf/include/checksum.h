/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whether a datagram's bytes prove its UDP checksum (RFC 1071 section 1; RFC 768; RFC 8200 section 8.1).
 *
 * The sum is over 32-bit words in the order of the machine, as ones' complement allows, in 64 bits: no carry
 * is lost and there is no branch for it. Loops end by the length, bounds are checked by the verifier's rules:
 * each access against the frame's end. Where a loop ends, the place is computed anew from the length, so that
 * the verifier sees one state behind it and not one an iteration.
 */
#ifndef RELAYCTL_CHECKSUM_H
#define RELAYCTL_CHECKSUM_H

#include "abi.h"
#include "parsing.h"

/* UDP of a whole Ethernet frame of 1500 bytes; media is never longer. */
#define MAX_CHECKED_BYTES 1536
#define CHUNK_BYTES 32
#define WORD_BYTES 4
#define CHECKED_MASK 0x7ff
/* Ethernet, two VLAN tags, IPv6: 62. */
#define UDP_OFFSET_MASK 0x7f
/* The same with UDP's header and SPP's: 108. */
#define PAYLOAD_OFFSET_MASK 0x7f

/* The compiler knows nothing of the value behind this, and so cannot make it of others in a way that the
 * verifier does not follow.
 */
#define make_opaque(value) asm volatile("" : "+r"(value))
/* A verifier may forget what was compared (6.1 does for what was on the stack): the bound is set where it is
 * needed. `mask` leaves every true value as it is.
 */
#define keep_within(value, mask)                                                                             \
	do {                                                                                                 \
		make_opaque(value);                                                                          \
		(value) &= (mask);                                                                           \
	} while (0)

static __always_inline __u64 sum_words(const void *at, __u32 count)
{
	const __u32 *word = at;
	__u64 sum = 0;

#pragma clang loop unroll(full)
	for (__u32 i = 0; i < count; i++)
		sum += word[i];
	return sum;
}

static __always_inline const void *skip_bytes(const void *start, __u64 count)
{
	keep_within(count, CHECKED_MASK);
	return start + count;
}

/* Adds the bytes from `start` on, at most MAX_CHECKED_BYTES. Returns -1 where the frame ends before. */
static __always_inline int sum_bytes(const void *start, const void *end, __u64 length, __u64 *sum)
{
	__u64 chunks = length / CHUNK_BYTES, words = length % CHUNK_BYTES / WORD_BYTES;
	const void *at = start;

#pragma clang loop unroll(disable)
	for (__u64 i = 0; i < MAX_CHECKED_BYTES / CHUNK_BYTES && i < chunks; i++, at += CHUNK_BYTES) {
		make_opaque(i);
		make_opaque(at);
		if (at + CHUNK_BYTES > end)
			return -1;
		*sum += sum_words(at, CHUNK_BYTES / WORD_BYTES);
	}
	at = skip_bytes(start, chunks * CHUNK_BYTES);
#pragma clang loop unroll(disable)
	for (__u64 i = 0; i < CHUNK_BYTES / WORD_BYTES && i < words; i++, at += WORD_BYTES) {
		make_opaque(i);
		make_opaque(at);
		if (at + WORD_BYTES > end)
			return -1;
		*sum += sum_words(at, 1);
	}
	at = skip_bytes(start, length - length % WORD_BYTES);
	if (length & 2) {
		if (at + 2 > end)
			return -1;
		*sum += *(const __u16 *)at;
		at += 2;
	}
	if (length & 1) {
		if (at + 1 > end)
			return -1;
		*sum += *(const __u8 *)at;
	}
	return 0;
}

static __always_inline __u16 fold(__u64 sum)
{
#pragma unroll
	for (int i = 0; i < 4; i++)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* The ffff in front of a mapped IPv4 address is 0 in ones' complement: one sum does for both families. */
static __always_inline __u64 sum_pseudo_header(const struct datagram *datagram, __u64 length)
{
	return sum_words(datagram->source.host, 4) + sum_words(datagram->destination.host, 4) +
	       htons(IPPROTO_UDP) + htons(length);
}

/* Ports and length that `udp_words` will write, with the pseudo header. `length` is that of header and
 * payload. */
static __always_inline __u64 sum_udp_headers(const struct endpoint *source,
					     const struct endpoint *destination, __u64 length)
{
	return sum_words(source->host, 4) + sum_words(destination->host, 4) + htons(IPPROTO_UDP) +
	       2 * (__u64)htons(length) + source->port + destination->port;
}

/* Of a sum with nothing in the place of the checksum; 0 would say that there is none (RFC 768). */
static __always_inline __u16 complete_checksum(__u64 sum)
{
	__u16 check = ~fold(sum);

	return check ? check : 0xffff;
}

/* `offset` is where UDP begins in the frame, `length` that of header and payload. A sender that leaves the
 * checksum to its NIC (CHECKSUM_PARTIAL) has only the pseudo header's sum in it: not complete.
 */
static __always_inline int is_checksum_complete(struct xdp_md *ctx, const struct datagram *datagram,
						__u64 offset, __u64 length)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 sum = sum_pseudo_header(datagram, length);
	const struct udphdr *udp;

	keep_within(offset, UDP_OFFSET_MASK);
	udp = data + offset;
	make_opaque(udp);
	if ((void *)(udp + 1) > end)
		return 0;
	/* None, which IPv4 alone allows (RFC 768; RFC 8200 section 8.1). */
	if (!udp->check)
		return is_mapped_ipv4(datagram->destination.host);
	return !sum_bytes(udp, end, length, &sum) && fold(sum) == 0xffff;
}

#endif
