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

/* The worker of a slot, if it lives. */
static __always_inline struct worker *find_worker(__u32 slot, const struct settings *settings, __u64 now)
{
	struct worker *worker = workers.lookup(&slot);

	return worker && now - worker->beat_ns < settings->heartbeat_timeout_ns ? worker : 0;
}

#endif
