/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps. Sizes that depend on the host are given by the loader, and PIN_DIR where they are to outlive it:
 * BCC pins a map there, or takes up the one that is there already.
 */
#ifndef RELAYCTL_MAPS_H
#define RELAYCTL_MAPS_H

#ifdef PIN_DIR
#define KIND(kind, name) kind ":" PIN_DIR "/" name
#else
#define KIND(kind, name) kind
#endif

/* Written by the supervisor: how to decide, and what is ours. */
BPF_TABLE(KIND("array", "settings"), __u32, struct settings, relay_settings, 1);
BPF_TABLE(KIND("array", "listeners"), __u32, struct listener, listeners, MAX_GROUPS);
BPF_F_TABLE(KIND("lpm_trie", "networks"), struct network, __u32, networks, 256, BPF_F_NO_PREALLOC);
/* The hosts of transceivers; one without an entry is reached by way of a worker. */
BPF_TABLE(KIND("hash", "next_hops"), struct host, struct next_hop, next_hops, MAX_NEXT_HOPS);
/* Which slot a client's hash leads to (a Maglev table). */
BPF_TABLE(KIND("array", "steering"), __u32, __u32, steering, STEERING_SIZE);
/* The cores of workers, each with a queue and a kernel thread (BPF_CPUMAP, which has no room for a pin). */
BPF_XDP_REDIRECT_MAP(KIND("cpumap", "cores"), __u32, cores, MAX_CORES);
/* Written by the workers. */
BPF_TABLE(KIND("array", "heartbeat"), __u32, struct heartbeat, heartbeat, 1);
BPF_TABLE(KIND("array", "workers"), __u32, struct worker, workers, MAX_SLOTS);
BPF_F_TABLE(KIND("array", "counters"), __u32, struct worker_counters, counters, MAX_SLOTS, BPF_F_MMAPABLE);
/* XDP counts and notes in an assured flow what it forwards. */
BPF_TABLE(KIND("hash", "flows"), struct flow_key, struct flow, flows, MAX_FLOWS);
/* A flood evicts other provisional flows, never an assured one. */
BPF_TABLE(KIND("lru_hash", "provisional"), struct flow_key, struct flow, provisional, MAX_PROVISIONAL);
/* Written here. */
BPF_TABLE(KIND("lru_hash", "buckets"), struct source_prefix, struct bucket, buckets, MAX_BUCKETS);
BPF_TABLE(KIND("percpu_array", "verdicts"), __u32, __u64, verdicts, VERDICT_COUNT);
/* Payload, by direction. */
BPF_TABLE(KIND("percpu_array", "forwarded_bytes"), __u32, __u64, forwarded_bytes, DIRECTION_COUNT);
BPF_TABLE(KIND("percpu_array", "core_choices"), __u32, __u64, core_choices, CORE_CHOICE_COUNT);

#endif
