// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Packets of many flows: each test run of this program sends one frame, or waits by dropping it. The loader
 * gives what bench/frames.py computes: HEADER_BYTES, MARKER_AT, HOST_AT, PORT_AT, IP_HAS_HOST, HAS_PORTS,
 * TURN_AT, TURNS, MIXED, FIRST_CLIENT, FIRST_PORT, MAX_PORTS.
 */
#include <uapi/linux/bpf.h>

#define NANO 1000000000ULL
/* A run that lost its core catches up with this much at most: more would be a burst that nobody asked for. */
#define MAX_LAG_NS 200000ULL
#define TEMPLATES 16
#define FLOWS_A_CLIENT_LOG2 4
#define IP_CHECK_AT 24
#define UDP_CHECK_AT 40
#define MARKER_FLOW 12
#define CLOCK_EVERY 64

struct job {
	/* Written by the loader; 0 packets_per_s is full speed. */
	__u64 packets_per_s;
	__u64 duration_ns;
	__u64 max_packets;
	__u32 interface;
	__u32 flows;
	__u32 random_order;
	__u32 stamped;
	/* Written here. `start_ns` moves on when lag is forgiven. */
	__u64 first_ns;
	__u64 start_ns;
	__u64 last_ns;
	__u64 offered;
	__u64 refused;
	__u32 seed;
	__u32 next_flow;
	__u32 over;
	__u32 pad;
};

struct template
{
	__u32 frame_bytes;
	__u32 ip_sum;
	__u32 udp_sum;
	__u32 pad;
	__u8 header[HEADER_BYTES];
	__u8 end[8 - HEADER_BYTES % 8];
};

BPF_ARRAY(jobs, struct job, 1);
BPF_ARRAY(templates, struct template, TEMPLATES);
BPF_ARRAY(ports, __u16, MAX_PORTS);

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline __u32 words_of(__u32 value)
{
	return (value & 0xffff) + (value >> 16);
}

/* Whether it is the next frame's turn. */
static __always_inline int is_due(struct job *job, __u64 now)
{
	__u64 due;

	if (!job->first_ns)
		job->first_ns = job->start_ns = now;
	if (now - job->first_ns >= job->duration_ns) {
		job->over = 1;
		return 0;
	}
	if (!job->packets_per_s)
		return 1;
	due = job->start_ns + (job->offered * NANO) / job->packets_per_s;
	if (now < due)
		return 0;
	if (now - due > MAX_LAG_NS)
		job->start_ns += now - due - MAX_LAG_NS;
	return 1;
}

static __always_inline __u32 pick_flow(struct job *job)
{
	__u32 random = job->seed;

	if (!job->random_order) {
		__u32 flow = job->next_flow;

		job->next_flow = flow + 1 < job->flows ? flow + 1 : 0;
		return flow;
	}
	/* Marsaglia's xorshift, of period 2^32 - 1 */
	random ^= random << 13;
	random ^= random >> 17;
	random ^= random << 5;
	job->seed = random;
	return ((__u64)random * job->flows) >> 32;
}

static __always_inline int write_frame(struct xdp_md *ctx, const struct template *template, __u32 flow,
				       __u64 now)
{
	void *data = (void *)(long)ctx->data;
	__u32 host = bpf_htonl(FIRST_CLIENT + (flow >> FLOWS_A_CLIENT_LOG2));
	__u16 port = bpf_htons(FIRST_PORT + (flow & ((1 << FLOWS_A_CLIENT_LOG2) - 1)));
	__u32 ip_sum = template->ip_sum, udp_sum = template->udp_sum;

	if (data + HEADER_BYTES > (void *)(long)ctx->data_end)
		return -1;
	/* The page comes back as its last receiver left it. */
	__builtin_memcpy(data, template->header, HEADER_BYTES);
	*(__u32 *)(data + MARKER_AT + MARKER_FLOW) = flow;
	*(__u64 *)(data + MARKER_AT + MARKER_FLOW + 4) = now;
	udp_sum += words_of(flow) + words_of(now) + words_of(now >> 32);
#if HOST_AT
	*(__u32 *)(data + HOST_AT) = host;
	udp_sum += words_of(host);
#endif
#if IP_HAS_HOST
	ip_sum += words_of(host);
#endif
#if HAS_PORTS
	__u16 *listed = ports.lookup(&flow);

	if (!listed)
		return -1;
	port = *listed;
#endif
#if PORT_AT
	*(__u16 *)(data + PORT_AT) = port;
	udp_sum += port;
#endif
#if TURN_AT
	/* Within the last byte of the address, so the sums grow as it does. */
	__u32 turn = flow % TURNS;

	*(__u8 *)(data + TURN_AT + 3) += turn;
	ip_sum += bpf_htons(turn);
	udp_sum += bpf_htons(turn);
#endif
	*(__u16 *)(data + IP_CHECK_AT) = fold(ip_sum);
	udp_sum = fold(udp_sum);
	*(__u16 *)(data + UDP_CHECK_AT) = udp_sum ? udp_sum : 0xffff;
	return 0;
}

int generate(struct xdp_md *ctx)
{
	__u32 zero = 0, which = 0;
	struct job *job = jobs.lookup(&zero);
	struct template *template;
	__u64 now = 0;

	if (!job || job->over)
		return XDP_DROP;
	if (job->packets_per_s || job->stamped || !(job->offered % CLOCK_EVERY)) {
		now = bpf_ktime_get_ns();
		if (!is_due(job, now))
			return XDP_DROP;
		job->last_ns = now;
	}
	if (job->offered >= job->max_packets) {
		job->over = 1;
		return XDP_DROP;
	}
#if MIXED
	which = job->offered % TEMPLATES;
#endif
	template = templates.lookup(&which);
	if (!template)
		return XDP_DROP;
#if MIXED
	__s32 surplus = (__s32)(ctx->data_end - ctx->data) - (__s32) template->frame_bytes;

	if (surplus && bpf_xdp_adjust_tail(ctx, -surplus)) {
		job->refused++;
		return XDP_DROP;
	}
#endif
	if (write_frame(ctx, template, pick_flow(job), now)) {
		job->refused++;
		return XDP_DROP;
	}
	job->offered++;
	return bpf_redirect(job->interface, 0);
}
