/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps. Sizes that depend on the host are given by the loader. */
#ifndef RELAYCTL_MAPS_H
#define RELAYCTL_MAPS_H

/* Written by the loader: how to decide, and what is ours. */
BPF_TABLE("array", __u32, struct settings, settings_of_relay, 1);
BPF_TABLE("hash", struct endpoint, struct listener, listeners, MAX_GROUPS);
BPF_TABLE("hash", struct endpoint, __u32, vips, MAX_GROUPS);
BPF_LPM_TRIE(transceiver_networks, struct network, __u32, 256);
/* Which slot a client's hash leads to (a Maglev table). */
BPF_TABLE("array", __u32, __u32, steering, STEERING_SIZE);
/* Written by the workers. */
BPF_TABLE("array", __u32, struct heartbeat, heartbeat, 1);
BPF_TABLE("hash", struct flow_key, struct flow, flows, MAX_FLOWS);
/* Written here. */
BPF_TABLE("lru_hash", struct source_prefix, struct bucket, buckets, MAX_BUCKETS);
BPF_TABLE("percpu_array", __u32, __u64, verdicts, VERDICT_COUNT);

#endif
