// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* A flood from one source: each test run of this program either sends the frame or waits by dropping it. The
 * loader gives FRAME_BYTES.
 */
#include <uapi/linux/bpf.h>

#define NANO 1000000000ULL
/* What a run that lost its core may catch up at full speed: a few slices of the scheduler (4 ms each at 250
 * Hz). Anything longer is left out, or a stall of seconds would end in a burst that was never asked for.
 */
#define MAX_LAG_NS 10000000ULL

struct flood {
	/* Written by the loader. */
	__u64 packets_per_s;
	__u64 duration_ns;
	__u64 max_packets;
	__u64 interface;
	/* Written here. `start_ns` moves on when lag is forgiven. */
	__u64 first_ns;
	__u64 start_ns;
	__u64 last_ns;
	__u64 offered;
	__u64 longest_lag_ns;
	__u64 refused;
};

struct frame {
	__u8 bytes[FRAME_BYTES];
};

BPF_ARRAY(floods, struct flood, 1);
BPF_ARRAY(frames, struct frame, 1);

/* Whether it is the next frame's turn. */
static __always_inline int is_due(struct flood *flood, __u64 now)
{
	__u64 due, lag;

	if (!flood->first_ns)
		flood->first_ns = flood->start_ns = now;
	if (flood->offered >= flood->max_packets || now - flood->first_ns >= flood->duration_ns)
		return 0;
	due = flood->start_ns + (flood->offered * NANO) / flood->packets_per_s;
	if (now < due)
		return 0;
	lag = now - due;
	if (lag > flood->longest_lag_ns)
		flood->longest_lag_ns = lag;
	if (lag > MAX_LAG_NS)
		flood->start_ns += lag - MAX_LAG_NS;
	return 1;
}

int send_flood(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct flood *flood = floods.lookup(&zero);
	struct frame *frame = frames.lookup(&zero);
	__u64 now = bpf_ktime_get_ns();

	if (!flood || !frame || !is_due(flood, now))
		return XDP_DROP;
	/* The page comes back as its last receiver left it. */
	if (bpf_xdp_store_bytes(ctx, 0, frame->bytes, sizeof(frame->bytes))) {
		flood->refused++;
		return XDP_DROP;
	}
	flood->offered++;
	flood->last_ns = now;
	return bpf_redirect(flood->interface, 0);
}
