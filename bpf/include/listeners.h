/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which of our addresses a packet is for. There are few, so that looking at each in turn costs less than a
 * hash. */
#ifndef RELAYCTL_LISTENERS_H
#define RELAYCTL_LISTENERS_H

#include "abi.h"
#include "maps.h"

static __always_inline int is_same_endpoint(const struct endpoint *one, const struct endpoint *other)
{
	const __u32 *a = (const __u32 *)one->host, *b = (const __u32 *)other->host;

	return one->port == other->port && a[3] == b[3] && a[2] == b[2] && a[1] == b[1] && a[0] == b[0];
}

/* The loops count in a register, as 6.1's verifier forgets a number that is on the stack. */
static __always_inline struct listener *listener_at(__u32 group)
{
	struct listener *listener = listeners.lookup(&group);

	return listener && listener->side ? listener : 0;
}

/* The listener whose packets come to that address, or 0. */
static __always_inline struct listener *find_listener(const struct endpoint *address)
{
#pragma clang loop unroll(disable)
	for (__u64 i = 0; i < MAX_GROUPS; i++) {
		struct listener *listener = listener_at(i);

		if (!listener)
			return 0;
		if (is_same_endpoint(&listener->listen, address))
			return listener;
	}
	return 0;
}

/* Whether it is where packets for us arrive, or a VIP: in either case no client's. */
static __always_inline int is_ours(const struct endpoint *address)
{
#pragma clang loop unroll(disable)
	for (__u64 i = 0; i < MAX_GROUPS; i++) {
		struct listener *listener = listener_at(i);

		if (!listener)
			return 0;
		if (is_same_endpoint(&listener->listen, address) ||
		    is_same_endpoint(&listener->told, address))
			return 1;
	}
	return 0;
}

/* The listener of what clients are told, or 0. */
static __always_inline struct listener *find_vip(const struct endpoint *address)
{
#pragma clang loop unroll(disable)
	for (__u64 i = 0; i < MAX_GROUPS; i++) {
		struct listener *listener = listener_at(i);

		if (!listener)
			return 0;
		if (listener->side == SIDE_PUBLIC && is_same_endpoint(&listener->told, address))
			return listener;
	}
	return 0;
}

#endif
