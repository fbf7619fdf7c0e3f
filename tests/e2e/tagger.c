// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* A switch between a client and a relay: it puts VLAN tags on datagrams for the VIP and takes off what tags
 * the answers have. The loader gives VIP_PORT, TO_RELAY and TO_CLIENT, the interfaces that lead there.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/udp.h>

#define MAX_TAGS 2
#define OUTER_PROTOCOL __builtin_bswap16(0x88a8)
#define INNER_PROTOCOL __builtin_bswap16(0x8100)
/* With a priority, which is to come back, too. */
#define OUTER_TCI __builtin_bswap16(0xa0c8)
#define INNER_TCI __builtin_bswap16(0x6064)

struct tag {
	__be16 protocol;
	__be16 tci;
} __attribute__((packed));

struct tagged {
	__u8 macs[2 * ETH_ALEN];
	struct tag tag;
} __attribute__((packed));

/* How many tags to put on. */
BPF_ARRAY(wanted, __u32, 1);
/* Datagrams by how many tags they had, as they leave for the relay and as they come from it. */
BPF_ARRAY(up, __u64, MAX_TAGS + 1);
BPF_ARRAY(down, __u64, MAX_TAGS + 1);
/* With a tag that nobody put on. */
BPF_ARRAY(wrong, __u64, 1);

/* IPv4 without options is all that comes here. */
static __always_inline struct udphdr *find_udp(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(ethernet + 1);
	struct udphdr *udp = (void *)(ip + 1);

	if ((void *)(udp + 1) > end || ethernet->h_proto != __builtin_bswap16(ETH_P_IP) ||
	    ip->protocol != IPPROTO_UDP)
		return 0;
	return udp;
}

static __always_inline int push(struct xdp_md *ctx, __be16 protocol, __be16 tci)
{
	struct tagged *frame;
	__u8 macs[2 * ETH_ALEN];

	frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return -1;
	__builtin_memcpy(macs, frame->macs, sizeof(macs));
	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(struct tag)))
		return -1;
	frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return -1;
	__builtin_memcpy(frame->macs, macs, sizeof(macs));
	frame->tag.protocol = protocol;
	frame->tag.tci = tci;
	return 0;
}

/* Returns whether there was a tag. */
static __always_inline int pop(struct xdp_md *ctx, __be16 protocol, __be16 tci)
{
	struct tagged *frame = (void *)(long)ctx->data;
	__u8 macs[2 * ETH_ALEN];
	__u32 zero = 0;

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end || frame->tag.protocol != protocol)
		return 0;
	if (frame->tag.tci != tci)
		wrong.increment(zero);
	__builtin_memcpy(macs, frame->macs, sizeof(macs));
	if (bpf_xdp_adjust_head(ctx, sizeof(struct tag)))
		return 0;
	frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return 0;
	__builtin_memcpy(frame->macs, macs, sizeof(macs));
	return 1;
}

int from_client(struct xdp_md *ctx)
{
	struct udphdr *udp = find_udp(ctx);
	__u32 zero = 0, *tags = wanted.lookup(&zero), count;

	if (!tags)
		return XDP_ABORTED;
	count = *tags;
	if (!udp || udp->dest != __builtin_bswap16(VIP_PORT))
		return bpf_redirect(TO_RELAY, 0);
	if (count >= 1 && push(ctx, INNER_PROTOCOL, INNER_TCI))
		return XDP_ABORTED;
	if (count >= 2 && push(ctx, OUTER_PROTOCOL, OUTER_TCI))
		return XDP_ABORTED;
	up.increment(count);
	return bpf_redirect(TO_RELAY, 0);
}

int from_relay(struct xdp_md *ctx)
{
	__u32 count = pop(ctx, OUTER_PROTOCOL, OUTER_TCI);
	struct udphdr *udp;

	count += pop(ctx, INNER_PROTOCOL, INNER_TCI);
	udp = find_udp(ctx);
	if (udp && udp->source == __builtin_bswap16(VIP_PORT))
		down.increment(count);
	return bpf_redirect(TO_CLIENT, 0);
}
