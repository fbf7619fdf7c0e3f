/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which slot a client's packets belong to, and who serves it: both programs ask here, so that they agree. */
#ifndef RELAYCTL_STEERING_H
#define RELAYCTL_STEERING_H

#include "abi.h"
#include "hash.h"
#include "maps.h"

/* The slot, or -1. */
static __always_inline int find_slot(const struct endpoint *client, const struct settings *settings)
{
	__u32 place = hash_endpoint(client, settings->hash_key) % STEERING_SIZE;
	__u32 *slot = steering.lookup(&place);

	return slot ? *slot % MAX_SLOTS : -1;
}

/* A beat on another CPU may be later than `now`. */
static __always_inline int is_recent(__u64 beat_ns, const struct settings *settings, __u64 now)
{
	return beat_ns && (__s64)(now - beat_ns) < (__s64)settings->heartbeat_timeout_ns;
}

/* The worker of a slot, if it lives. */
static __always_inline struct worker *find_worker(__u32 slot, const struct settings *settings, __u64 now)
{
	struct worker *worker = workers.lookup(&slot);

	return worker && is_recent(worker->beat_ns, settings, now) ? worker : 0;
}

#endif
