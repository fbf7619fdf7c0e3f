// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The receiving end: counts and drops the packets that are really relayed ones, and lets everything else
 * pass. The loader gives FIRST_CLIENT, FIRST_PORT, MAGIC, BUCKETS, SUB_BUCKETS_LOG2, MAX_LEARNED.
 */
#include <uapi/linux/bpf.h>

#define FLOWS_A_CLIENT_LOG2 4
#define PAYLOAD_AT 42
#define UDP_LENGTH_AT 38
#define MARKER_LENGTH 2
#define MARKER_MAGIC 8
#define MARKER_FLOW 12
#define MARKER_TIME 16
#define LENGTH_OFFSET 20
#define OFFSET_MASK 0x7f

enum mode {
	COUNT = 0,
	LATENCY = 1,
	LEARN_PORTS = 2,
	ARRIVALS = 3,
};

/* Where things stand in a frame that is relayed rightly; `host_at` 0: the flow's client is nowhere in it.
 * `turn_at`: an address that is one of `turns` by flow, 0 if it is always the same.
 */
struct expectation {
	__u32 mode;
	__u32 marker_at;
	__u32 host_at;
	__u32 port_at;
	__u32 fixed_at;
	__u32 fixed;
	__u32 turn_at;
	__u32 turns;
	__u32 first_of_turns;
};

enum count {
	DELIVERED = 0,
	WRONG = 1,
	COUNT_COUNT,
};

BPF_ARRAY(expectations, struct expectation, 1);
BPF_PERCPU_ARRAY(counts, __u64, COUNT_COUNT);
BPF_PERCPU_ARRAY(histogram, __u64, BUCKETS);
BPF_ARRAY(learned, __u16, MAX_LEARNED);
BPF_ARRAY(arrivals, __u64, MAX_LEARNED);

/* One word of the frame; 0 where it ends before. */
static __always_inline __u32 word_at(struct xdp_md *ctx, __u32 at)
{
	void *data = (void *)(long)ctx->data + (at & OFFSET_MASK);

	return data + 4 > (void *)(long)ctx->data_end ? 0 : *(__u32 *)data;
}

static __always_inline __u16 half_at(struct xdp_md *ctx, __u32 at)
{
	void *data = (void *)(long)ctx->data + (at & OFFSET_MASK);

	return data + 2 > (void *)(long)ctx->data_end ? 0 : *(__u16 *)data;
}

static __always_inline int is_right(struct xdp_md *ctx, const struct expectation *expected, __u32 flow)
{
	__u32 length = bpf_ntohs(half_at(ctx, expected->marker_at + MARKER_LENGTH)) + LENGTH_OFFSET;
	__u32 udp_length = bpf_ntohs(half_at(ctx, UDP_LENGTH_AT));

	if (udp_length != length + expected->marker_at - PAYLOAD_AT + 8)
		return 0;
	if (half_at(ctx, expected->fixed_at) != expected->fixed)
		return 0;
	if (expected->turn_at &&
	    word_at(ctx, expected->turn_at) != bpf_htonl(expected->first_of_turns + flow % expected->turns))
		return 0;
	if (!expected->host_at)
		return 1;
	return word_at(ctx, expected->host_at) == bpf_htonl(FIRST_CLIENT + (flow >> FLOWS_A_CLIENT_LOG2)) &&
	       half_at(ctx, expected->port_at) ==
		   bpf_htons(FIRST_PORT + (flow & ((1 << FLOWS_A_CLIENT_LOG2) - 1)));
}

/* One nanosecond each up to 2^SUB_BUCKETS_LOG2, then half that many buckets for each doubling
 * (bench/histogram.py).
 */
static __always_inline __u32 bucket_of(__u64 value)
{
	__u64 rest = value >> SUB_BUCKETS_LOG2;
	__u32 shift = 0;

#pragma unroll
	for (int step = 16; step; step /= 2) {
		if (rest >> step) {
			rest >>= step;
			shift += step;
		}
	}
	if (rest)
		shift++;
	if (!shift)
		return value;
	return (1 << SUB_BUCKETS_LOG2) + ((shift - 1) << (SUB_BUCKETS_LOG2 - 1)) + (value >> shift) -
	       (1 << (SUB_BUCKETS_LOG2 - 1));
}

static __always_inline void note(struct xdp_md *ctx, const struct expectation *expected, __u32 flow)
{
	__u64 sent = word_at(ctx, expected->marker_at + MARKER_TIME) |
		     ((__u64)word_at(ctx, expected->marker_at + MARKER_TIME + 4) << 32);
	__u64 now = bpf_ktime_get_ns();

	if (expected->mode == LATENCY) {
		__u32 bucket = bucket_of(now - sent);

		histogram.increment(bucket < BUCKETS ? bucket : BUCKETS - 1);
	} else if (expected->mode == LEARN_PORTS) {
		__u16 port = half_at(ctx, PAYLOAD_AT - 8);

		learned.update(&flow, &port);
	} else {
		__u64 *arrived = arrivals.lookup(&flow);

		if (arrived && !*arrived)
			*arrived = now;
	}
}

int sink(struct xdp_md *ctx)
{
	__u32 zero = 0, flow;
	struct expectation *expected = expectations.lookup(&zero);

	if (!expected || word_at(ctx, expected->marker_at + MARKER_MAGIC) != MAGIC)
		return XDP_PASS;
	flow = word_at(ctx, expected->marker_at + MARKER_FLOW);
	if (!is_right(ctx, expected, flow)) {
		counts.increment(WRONG);
		return XDP_DROP;
	}
	counts.increment(DELIVERED);
	if (expected->mode)
		note(ctx, expected, flow);
	return XDP_DROP;
}
