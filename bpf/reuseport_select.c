// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Which worker's socket a datagram goes to. The client's address alone decides, on the fleet side the one in
 * the SPP header: so both directions of a flow meet the same worker, and no other has to know of it.
 */
#include <uapi/linux/bpf.h>

#include "abi.h"
#include "verdict.h"
#include "parsing.h"
#include "listeners.h"
#include "maps.h"
#include "steering.h"

/* The header of UDP is at 0 for this kind of program. Direct access fails where a packet is in several
 * pieces. */
#define UDP_HEADER 0
#define SPP_CLIENT_HOST (sizeof(struct udphdr) + 2)
#define SPP_CLIENT_PORT (sizeof(struct udphdr) + 34)

static __always_inline int read_addresses(struct sk_reuseport_md *ctx, struct endpoint *source,
					  struct endpoint *destination)
{
	struct udphdr udp;
	struct iphdr ip;
	struct ipv6hdr ip6;

	if (bpf_skb_load_bytes((void *)ctx, UDP_HEADER, &udp, sizeof(udp)))
		return -1;
	source->port = udp.source;
	destination->port = udp.dest;
	if (ctx->eth_protocol == htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes_relative((void *)ctx, 0, &ip, sizeof(ip), BPF_HDR_START_NET))
			return -1;
		map_ipv4(source->host, ip.saddr);
		map_ipv4(destination->host, ip.daddr);
		return 0;
	}
	if (bpf_skb_load_bytes_relative((void *)ctx, 0, &ip6, sizeof(ip6), BPF_HDR_START_NET))
		return -1;
	__builtin_memcpy(source->host, &ip6.saddr, 16);
	__builtin_memcpy(destination->host, &ip6.daddr, 16);
	return 0;
}

static __always_inline int select_slot(struct sk_reuseport_md *ctx, __u32 group, __u32 slot)
{
	__u32 index = group * MAX_SLOTS + slot;

	return !bpf_sk_select_reuseport(ctx, (void *)bpf_pseudo_fd(1, SOCKETS_FD), &index, 0);
}

/* SK_PASS without a selected socket leaves the choice to the kernel's own hash. */
int reuseport_select(struct sk_reuseport_md *ctx)
{
	struct endpoint client = {}, destination = {};
	struct settings *settings;
	struct listener *listener;
	__u32 zero = 0;
	__u64 now;
	int steered;

	if (read_addresses(ctx, &client, &destination))
		return SK_PASS;
	listener = find_listener(&destination);
	settings = relay_settings.lookup(&zero);
	if (!listener || !settings)
		return SK_PASS;
	if (listener->side == SIDE_FLEET &&
	    (bpf_skb_load_bytes((void *)ctx, SPP_CLIENT_HOST, client.host, sizeof(client.host)) ||
	     bpf_skb_load_bytes((void *)ctx, SPP_CLIENT_PORT, &client.port, sizeof(client.port))))
		return SK_PASS;
	steered = find_slot(&client, settings);
	if (steered < 0)
		return SK_PASS;
	/* A slot that is empty, or whose worker hangs: the next living one stands in. */
	now = bpf_ktime_get_ns();
	for (__u32 i = 0; i < MAX_SLOTS; i++) {
		__u32 slot = (steered + i) % MAX_SLOTS;

		if (find_worker(slot, settings, now) && select_slot(ctx, listener->group, slot))
			return SK_PASS;
	}
	/* None lives: the packet waits for its own worker. */
	select_slot(ctx, listener->group, steered);
	return SK_PASS;
}
