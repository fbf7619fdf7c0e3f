// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* A flood, from one source or many: each test run of this program either sends a frame or waits by dropping
 * it. The loader gives FRAME_BYTES, the length of every frame, and FRAMES, how many take turns.
 */
#include <uapi/linux/bpf.h>

#define NANO 1000000000ULL
/* What a run that lost its core may catch up at full speed: a few slices of the scheduler (4 ms each at 250
 * Hz). Anything longer is left out, or a stall of seconds would end in a burst that was never asked for.
 */
#define MAX_LAG_NS 10000000ULL
#define IP_CHECK_AT 24
#define IP_SOURCE_AT 26
#define UDP_SOURCE_AT 34
#define UDP_CHECK_AT 40
#define HEADER_BYTES 42

struct flood {
	/* Written by the loader. */
	__u64 packets_per_s;
	__u64 duration_ns;
	__u64 max_packets;
	__u32 interface;
	/* Sources are drawn from `sources` addresses from `first_host` on, and `ports` ports, in the
	 * machine's order. */
	__u32 first_host;
	__u32 sources;
	__u32 first_port;
	__u32 ports;
	__u32 seed;
	/* Written here. `start_ns` moves on when lag is forgiven. */
	__u64 first_ns;
	__u64 start_ns;
	__u64 last_ns;
	__u64 offered;
	__u64 longest_lag_ns;
	__u64 refused;
};

/* With zeros for source and checksums; the sums are of all else, as the machine adds words. */
struct frame {
	__u32 ip_sum;
	__u32 udp_sum;
	__u8 bytes[FRAME_BYTES];
	__u8 end[8 - FRAME_BYTES % 8];
};

BPF_ARRAY(floods, struct flood, 1);
BPF_ARRAY(frames, struct frame, FRAMES);

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* One of so many numbers from 0 on. */
static __always_inline __u32 draw(struct flood *flood, __u32 count)
{
	__u32 random = flood->seed;

	/* Marsaglia's xorshift, of period 2^32 - 1 */
	random ^= random << 13;
	random ^= random >> 17;
	random ^= random << 5;
	flood->seed = random;
	return ((__u64)random * count) >> 32;
}

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

/* The page comes back as its last receiver left it, so all of it is written. */
static __always_inline int write_frame(struct xdp_md *ctx, struct flood *flood, struct frame *frame)
{
	__u32 host = bpf_htonl(flood->first_host + draw(flood, flood->sources));
	__u16 port = bpf_htons(flood->first_port + draw(flood, flood->ports));
	__u32 host_sum = (host & 0xffff) + (host >> 16);
	__u16 udp_check = fold(frame->udp_sum + host_sum + port);
	void *data;

	if (bpf_xdp_store_bytes(ctx, 0, frame->bytes, sizeof(frame->bytes)))
		return -1;
	data = (void *)(long)ctx->data;
	if (data + HEADER_BYTES > (void *)(long)ctx->data_end)
		return -1;
	*(__u16 *)(data + IP_CHECK_AT) = fold(frame->ip_sum + host_sum);
	*(__u32 *)(data + IP_SOURCE_AT) = host;
	*(__u16 *)(data + UDP_SOURCE_AT) = port;
	*(__u16 *)(data + UDP_CHECK_AT) = udp_check ? udp_check : 0xffff;
	return 0;
}

int send_flood(struct xdp_md *ctx)
{
	__u32 zero = 0, which;
	struct flood *flood = floods.lookup(&zero);
	struct frame *frame;
	__u64 now = bpf_ktime_get_ns();

	if (!flood || !is_due(flood, now))
		return XDP_DROP;
	which = flood->offered % FRAMES;
	frame = frames.lookup(&which);
	if (!frame)
		return XDP_DROP;
	if (write_frame(ctx, flood, frame)) {
		flood->refused++;
		return XDP_DROP;
	}
	flood->offered++;
	flood->last_ns = now;
	return bpf_redirect(flood->interface, 0);
}
