/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets of assured flows, forwarded without leaving the kernel. Whatever is unusual about a packet sends it
 * the long way, to be judged and handed up: a worker forwards the same packets by the same rules.
 */
#ifndef RELAYCTL_FASTPATH_H
#define RELAYCTL_FASTPATH_H

#include "abi.h"
#include "checksum.h"
#include "listeners.h"
#include "maps.h"
#include "parsing.h"
#include "rewriting.h"
#include "verdict.h"
#include "webrtc.h"

/* Which assured flow a packet belongs to, and how it leaves. */
struct passage {
	struct flow *flow;
	struct envelope envelope;
	enum verdict verdict;
	enum direction direction;
	__u32 payload_length;
};

static __always_inline void make_key(struct flow_key *key, const __u8 host[16], __be16 port, __u32 group)
{
	__builtin_memcpy(key->client_host, host, 16);
	key->client_port = port;
	key->group = group;
}

static __always_inline const struct endpoint *fleet_endpoint(const struct endpoint *peer,
							     const struct settings *settings)
{
	return is_mapped_ipv4(peer->host) ? &settings->fleet_ipv4 : &settings->fleet_ipv6;
}

static __always_inline void count_forwarded(const struct passage *passage)
{
	__u32 verdict = passage->verdict, direction = passage->direction;
	__u64 *packets = verdicts.lookup(&verdict), *bytes = forwarded_bytes.lookup(&direction);

	if (packets)
		*packets += 1;
	if (bytes)
		*bytes += passage->payload_length;
}

static __always_inline int is_same_mac(const __u16 one[3], const __u16 other[3])
{
	return one[0] == other[0] && one[1] == other[1] && one[2] == other[2];
}

/* The way back is the way that the client's last packet came. Returns 0 where that one was not for us alone.
 */
static __always_inline int learn_client_path(const struct xdp_md *ctx, const struct datagram *datagram,
					     struct link_path *known)
{
	const __u16 *macs = (void *)(long)ctx->data;
	__u16 *to = (__u16 *)known->to_mac, *from = (__u16 *)known->from_mac;

	if ((void *)macs + MACS_BYTES > (void *)(long)ctx->data_end || (macs[0] & 1))
		return 0;
	if (known->ifindex == ctx->ingress_ifindex && is_same_mac(to, macs + 3) && is_same_mac(from, macs) &&
	    known->tag_proto[0] == datagram->tag_proto[0] && known->tag_tci[0] == datagram->tag_tci[0] &&
	    known->tag_proto[1] == datagram->tag_proto[1] && known->tag_tci[1] == datagram->tag_tci[1])
		return 1;
	known->ifindex = ctx->ingress_ifindex;
	__builtin_memcpy(to, macs + 3, 6);
	__builtin_memcpy(from, macs, 6);
	__builtin_memcpy(known->tag_proto, datagram->tag_proto, sizeof(known->tag_proto));
	__builtin_memcpy(known->tag_tci, datagram->tag_tci, sizeof(known->tag_tci));
	return 1;
}

/* The frame with room for other headers in front of the payload; `offset` is where that is now. */
static __always_inline int move_payload(struct xdp_md *ctx, __u64 offset, __u64 new_offset)
{
	return bpf_xdp_adjust_head(ctx, (int)offset - (int)new_offset);
}

static __always_inline int send_out(const struct xdp_md *ctx, const struct link_path *path)
{
	return path->ifindex == ctx->ingress_ifindex ? XDP_TX : bpf_redirect(path->ifindex, 0);
}

/* Headers for `extra` bytes more than the payload. Returns the place of these bytes, or 0. */
static __always_inline void *write_headers(struct xdp_md *ctx, const struct envelope *envelope, __u64 offset,
					   __u64 extra, __u16 check)
{
	__u64 headers = header_bytes(envelope->destination);
	void *at, *end;

	if (move_payload(ctx, offset, MACS_BYTES + tag_bytes(envelope->path) + headers + extra))
		return 0;
	end = (void *)(long)ctx->data_end;
	at = write_link_header((void *)(long)ctx->data, end, envelope->path);
	if (!at)
		return 0;
	if (is_mapped_ipv4(envelope->destination->host)) {
		if (at + IPV4_HEADERS_BYTES + extra > end)
			return 0;
		write_ipv4(at, envelope, check);
		return at + IPV4_HEADERS_BYTES;
	}
	if (at + IPV6_HEADERS_BYTES + extra > end)
		return 0;
	write_ipv6(at, envelope, check);
	return at + IPV6_HEADERS_BYTES;
}

/* The whole frame with the SPP header in it; no UDP checksum, as what the sender left of it need not be
 * complete, and transceivers take none (UDP_NO_CHECK6_RX).
 */
static __always_inline int send_to_transceiver(struct xdp_md *ctx, const struct passage *passage,
					       const struct endpoint *client, const struct endpoint *proxy,
					       __u64 offset)
{
	void *at = write_headers(ctx, &passage->envelope, offset, SPP_HEADER_BYTES, 0);

	if (!at)
		return XDP_ABORTED;
	write_spp(at, client, proxy);
	count_forwarded(passage);
	return send_out(ctx, passage->envelope.path);
}

static __always_inline int send_to_client(struct xdp_md *ctx, const struct passage *passage, __u64 offset,
					  __u16 check)
{
	if (!write_headers(ctx, &passage->envelope, offset, 0, check))
		return XDP_ABORTED;
	count_forwarded(passage);
	return send_out(ctx, passage->envelope.path);
}

static __always_inline __u32 length_on_wire(const struct envelope *envelope)
{
	return header_bytes(envelope->destination) - sizeof(__be16) - sizeof(struct udphdr) +
	       envelope->length;
}

/* DTLS and RTP, and the checks of the flow's own session: a dead control plane must not end calls. */
static __always_inline int is_forwarded_up(const struct datagram *datagram, void *end,
					   struct passage *passage)
{
	__u8 *payload = datagram->payload;

	if ((void *)(payload + 1) > end)
		return 0;
	passage->verdict = FORWARD_FLOW;
	if (is_media(*payload))
		return 1;
	passage->verdict = FORWARD_STUN;
	return is_stun(*payload) && has_stun_header((void *)payload, end, datagram->payload_length) &&
	       is_check_of((void *)payload, end, datagram->payload_length, passage->flow->ufrag_tag);
}

static __always_inline void note_up(const struct passage *passage)
{
	struct flow *flow = passage->flow;
	__u64 now = bpf_ktime_get_coarse_ns();

	flow->last_seen_ns = now;
	flow->packets_up++;
	flow->bytes_up += passage->payload_length;
	if (passage->verdict == FORWARD_STUN)
		flow->ufrag_seen_ns = now;
}

static __always_inline int forward_to_transceiver(struct xdp_md *ctx, const struct datagram *datagram,
						  void *end, const struct settings *settings,
						  const struct listener *listener, int *action)
{
	struct passage passage = {.direction = DIRECTION_UP, .payload_length = datagram->payload_length};
	struct envelope *envelope = &passage.envelope;
	struct flow_key key;
	struct next_hop *hop;
	struct flow *flow;

	make_key(&key, datagram->source.host, datagram->source.port, listener->group);
	flow = flows.lookup(&key);
	if (!flow || datagram->payload_length > MAX_DATAGRAM_BYTES)
		return 0;
	passage.flow = flow;
	if (!is_forwarded_up(datagram, end, &passage))
		return 0;
	hop = next_hops.lookup((struct host *)&flow->transceiver);
	if (!hop)
		return 0;
	envelope->path = &hop->path;
	envelope->source = fleet_endpoint(&flow->transceiver, settings);
	envelope->destination = &flow->transceiver;
	envelope->class_and_label = datagram->class_and_label;
	envelope->hop_limit = datagram->hop_limit - 1;
	envelope->length = sizeof(struct udphdr) + SPP_HEADER_BYTES + datagram->payload_length;
	if (!envelope->source->port || length_on_wire(envelope) > hop->mtu)
		return 0;
	if (!learn_client_path(ctx, datagram, &flow->client_path))
		return 0;
	note_up(&passage);
	*action = send_to_transceiver(ctx, &passage, &datagram->source, &listener->told,
				      (void *)datagram->payload - (void *)(long)ctx->data);
	return 1;
}

/* A DTLS alert is a transceiver's goodbye: another session may have the address. */
static __always_inline void note_down(const struct passage *passage, __u8 first)
{
	struct flow *flow = passage->flow;
	__u32 flags = first == DTLS_ALERT ? flow->flags | FLOW_IS_RELEASED : flow->flags & ~FLOW_IS_RELEASED;
	__u64 now = bpf_ktime_get_coarse_ns();

	flow->last_seen_ns = now;
	flow->down_seen_ns = now;
	flow->packets_down++;
	flow->bytes_down += passage->payload_length;
	if (flags != flow->flags)
		flow->flags = flags;
}

/* The flow of the client on the VIP, if its transceiver is who sends. */
static __always_inline struct flow *find_flow_down(const struct datagram *datagram,
						   const struct endpoint *client, __u32 group)
{
	struct flow_key key;
	struct flow *flow;

	make_key(&key, client->host, client->port, group);
	flow = flows.lookup(&key);
	return flow && is_same_endpoint(&flow->transceiver, &datagram->source) ? flow : 0;
}

static __always_inline int forward_to_client(struct xdp_md *ctx, const struct datagram *datagram, void *end,
					     const struct settings *settings, int *action)
{
	const struct spp_header *spp = (const void *)datagram->payload;
	struct passage passage = {.verdict = FORWARD_CLIENT, .direction = DIRECTION_DOWN};
	struct envelope *envelope = &passage.envelope;
	struct endpoint client = {}, proxy = {};
	__u64 offset, length, sum = 0;
	struct listener *vip;
	void *payload;

	if ((void *)(spp + 1) + 1 > end || spp->magic != htons(SPP_MAGIC))
		return 0;
	length = datagram->payload_length - sizeof(*spp);
	/* What is shorter than its header becomes very long. */
	if (length - 1 >= MAX_CHECKED_BYTES)
		return 0;
	__builtin_memcpy(client.host, spp->client, 16);
	client.port = spp->client_port;
	__builtin_memcpy(proxy.host, spp->proxy, 16);
	proxy.port = spp->proxy_port;
	vip = find_vip(&proxy);
	if (!vip)
		return 0;
	passage.flow = find_flow_down(datagram, &client, vip->group);
	if (!passage.flow || !passage.flow->client_path.ifindex)
		return 0;
	passage.payload_length = length;
	envelope->path = &passage.flow->client_path;
	envelope->source = &vip->listen;
	envelope->destination = &client;
	envelope->class_and_label = datagram->class_and_label;
	envelope->hop_limit = datagram->hop_limit - 1;
	envelope->length = sizeof(struct udphdr) + length;
	if (length_on_wire(envelope) > settings->mtu)
		return 0;
	offset = (void *)(spp + 1) - (void *)(long)ctx->data;
	keep_within(offset, PAYLOAD_OFFSET_MASK);
	payload = (void *)(long)ctx->data + offset;
	if (sum_bytes(payload, end, length, &sum))
		return 0;
	note_down(&passage, *((const __u8 *)(spp + 1)));
	sum += sum_udp_headers(envelope->source, envelope->destination, envelope->length);
	*action = send_to_client(ctx, &passage, offset, complete_checksum(sum));
	return 1;
}

/* Returns 0 for a packet that is not forwarded here, and that stays as it was. A packet that is broken in any
 * way is for the long way to judge. */
static __always_inline int forward_assured(struct xdp_md *ctx, const struct datagram *datagram, void *end,
					   const struct settings *settings, const struct listener *listener,
					   int *action)
{
	__u64 in_frame = end - (void *)datagram->payload;

	if (datagram->is_malformed || datagram->is_fragment || datagram->hop_limit <= 1 ||
	    !datagram->payload_length || datagram->payload_length > in_frame)
		return 0;
	if (listener->side == SIDE_FLEET)
		return forward_to_client(ctx, datagram, end, settings, action);
	return forward_to_transceiver(ctx, datagram, end, settings, listener, action);
}

#endif
