// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What arrives at the relay, before it costs a wake-up: everything that no worker would forward is dropped
 * here with its reason, the rest is handed up to the sockets. The rules are those of
 * relay/core/forwarding.py, and tests/relay/packets.py holds both to one table.
 */
#include <uapi/linux/bpf.h>

#include "abi.h"
#include "verdict.h"
#include "parsing.h"
#include "maps.h"
#include "steering.h"
#include "checksum.h"
#include "webrtc.h"
#include "fastpath.h"

#define NANO 1000000000ULL

/* The rules of AddressRules.may_be_client, but for our own sockets. */
static __always_inline int is_martian(const __u8 host[16], int is_ipv4_packet,
				      const struct settings *settings)
{
	const __u32 *word = (const __u32 *)host;

	if (is_mapped_ipv4(host)) {
		if (!is_ipv4_packet)
			return 1;
		if (host[12] == 127)
			return !settings->loopback_clients;
		return !host[12] || host[12] >= 224;
	}
	if (!word[0] && !word[1] && !word[2]) {
		if (word[3] == htonl(1))
			return !settings->loopback_clients;
		return !word[3];
	}
	return host[0] == 0xff || (host[0] == 0xfe && (host[1] & 0xc0) == 0x80);
}

static __always_inline int is_loopback(const __u8 host[16])
{
	const __u32 *word = (const __u32 *)host;

	if (is_mapped_ipv4(host))
		return host[12] == 127;
	return !word[0] && !word[1] && !word[2] && word[3] == htonl(1);
}

static __always_inline int is_in_fleet(const __u8 host[16])
{
	struct network key = {.prefix_length = 128};

	__builtin_memcpy(key.host, host, 16);
	return !!networks.lookup(&key);
}

static __always_inline int may_be_client(struct endpoint *client, int is_ipv4_packet,
					 const struct settings *settings)
{
	if (is_martian(client->host, is_ipv4_packet, settings))
		return 0;
	/* On one machine clients, relay and transceivers share the loopback address. */
	if (!is_loopback(client->host) && is_in_fleet(client->host))
		return 0;
	return !is_ours(client);
}

static __always_inline void mask_source(__u8 masked[16], const __u8 host[16], const struct settings *settings)
{
	const __u64 *mask = is_mapped_ipv4(host) ? settings->ipv4_source_mask : settings->ipv6_source_mask;
	__u64 words[2];

	__builtin_memcpy(words, host, 16);
	words[0] &= mask[0];
	words[1] &= mask[1];
	__builtin_memcpy(masked, words, 16);
}

/* One packet of no known flow from this source: may it pass? */
static __always_inline int take_token(const struct endpoint *source, const struct settings *settings,
				      __u64 now)
{
	struct source_prefix prefix = {};
	struct bucket *bucket, fresh = {};
	__u64 tokens;

	mask_source(prefix.host, source->host, settings);
	bucket = buckets.lookup(&prefix);
	if (!bucket) {
		fresh.nano_tokens = (settings->unknown_burst - 1) * NANO;
		fresh.filled_ns = now;
		buckets.update(&prefix, &fresh);
		return 1;
	}
	/* Two CPUs may race for a token; the bucket is a guard, no account. The other one may be ahead. */
	tokens = bucket->nano_tokens;
	if ((__s64)(now - bucket->filled_ns) > 0) {
		tokens += (now - bucket->filled_ns) * settings->unknown_per_s;
		bucket->filled_ns = now;
	}
	if (tokens > settings->unknown_burst * NANO)
		tokens = settings->unknown_burst * NANO;
	bucket->nano_tokens = tokens >= NANO ? tokens - NANO : tokens;
	return tokens >= NANO;
}

static __always_inline int is_worker_alive(const struct settings *settings, __u64 now)
{
	__u32 zero = 0;
	struct heartbeat *beat = heartbeat.lookup(&zero);

	return beat && is_recent(beat->beat_ns, settings, now);
}

/* STUN is checked as far as its header goes. */
static __always_inline enum verdict check_protocol(const struct datagram *datagram, void *end)
{
	const __u8 *payload = datagram->payload;

	if ((void *)(payload + 1) > end)
		return DROP_MALFORMED;
	if (is_media(*payload))
		return HAND_UP;
	if (!is_stun(*payload))
		return DROP_NOT_WEBRTC;
	return has_stun_header((void *)payload, end, datagram->payload_length) ? HAND_UP
									       : DROP_STUN_MALFORMED;
}

static __always_inline enum verdict receive_from_client(struct datagram *datagram, void *end,
							const struct settings *settings,
							const struct listener *listener)
{
	struct flow_key key;
	enum verdict verdict;
	__u64 now;

	if (!datagram->payload_length)
		return DROP_MALFORMED;
	if (datagram->payload_length > MAX_DATAGRAM_BYTES)
		return DROP_OVERSIZE;
	if (!datagram->source.port)
		return DROP_SOURCE_PORT_ZERO;
	if (!may_be_client(&datagram->source, is_mapped_ipv4(datagram->destination.host), settings))
		return DROP_MARTIAN;
	verdict = check_protocol(datagram, end);
	if (verdict != HAND_UP)
		return verdict;
	now = bpf_ktime_get_ns();
	make_key(&key, datagram->source.host, datagram->source.port, listener->group);
	/* Never a known flow: many callers share one CGNAT address. */
	if (!flows.lookup(&key) && !provisional.lookup(&key) && !take_token(&datagram->source, settings, now))
		return DROP_RATE_LIMITED;
	/* A closed socket would answer with ICMP port unreachable, which ends calls. */
	return is_worker_alive(settings, now) ? HAND_UP : DROP_NO_WORKER;
}

/* `client` becomes the one that the packet is for. */
static __always_inline enum verdict receive_from_fleet(struct datagram *datagram, void *end,
						       const struct settings *settings,
						       struct endpoint *client)
{
	struct spp_header *spp = (void *)datagram->payload;
	struct endpoint proxy = {};

	if (!is_in_fleet(datagram->source.host))
		return DROP_SPP_SOURCE;
	if (datagram->payload_length > MAX_DATAGRAM_BYTES + SPP_HEADER_BYTES)
		return DROP_OVERSIZE;
	/* Nothing behind the header: a transceiver's word on a flow, for a worker to judge. */
	if (datagram->payload_length < SPP_HEADER_BYTES || (void *)(spp + 1) > end ||
	    spp->magic != htons(SPP_MAGIC))
		return DROP_SPP_MALFORMED;
	__builtin_memcpy(client->host, spp->client, 16);
	__builtin_memcpy(proxy.host, spp->proxy, 16);
	client->port = spp->client_port;
	proxy.port = spp->proxy_port;
	if (!find_vip(&proxy))
		return DROP_SPP_PROXY;
	if (!client->port || is_mapped_ipv4(client->host) != is_mapped_ipv4(proxy.host) ||
	    !may_be_client(client, is_mapped_ipv4(proxy.host), settings))
		return DROP_SPP_CLIENT;
	return is_worker_alive(settings, bpf_ktime_get_ns()) ? HAND_UP : DROP_NO_WORKER;
}

/* `client` becomes the one that the packet is of, or for. */
static __always_inline enum verdict judge(struct datagram *datagram, void *end,
					  const struct settings *settings, const struct listener *listener,
					  struct endpoint *client)
{
	if (datagram->is_malformed)
		return DROP_MALFORMED;
	if (datagram->is_fragment)
		return DROP_FRAGMENT;
	if (listener->side == SIDE_FLEET)
		return receive_from_fleet(datagram, end, settings, client);
	*client = datagram->source;
	return receive_from_client(datagram, end, settings, listener);
}

/* The core that this packet should go on at. cpumap drops the mark of a checksum that the sender has left to
 * its NIC, and then the kernel drops the packet: so only what proves its own checksum may go.
 */
static __always_inline enum core_choice choose_core(struct xdp_md *ctx, const struct datagram *datagram,
						    const struct endpoint *client, __u64 offset,
						    const struct settings *settings, __u32 *core)
{
	__u64 length = datagram->payload_length + sizeof(struct udphdr);
	int slot = find_slot(client, settings);
	struct worker *worker;

	make_opaque(length);
	if (slot < 0)
		return CORE_UNKNOWN;
	worker = find_worker(slot, settings, bpf_ktime_get_ns());
	if (!worker)
		return CORE_UNKNOWN;
	*core = worker->core;
	if (*core == bpf_get_smp_processor_id())
		return CORE_LOCAL;
	if (length > MAX_CHECKED_BYTES)
		return CORE_TOO_LONG;
	if (!is_checksum_complete(ctx, datagram, offset, length))
		return CORE_CHECKSUM_INCOMPLETE;
	return CORE_REDIRECTED;
}

/* To the sockets: at once, or by way of the worker's core. */
static __always_inline int hand_up(struct xdp_md *ctx, const struct datagram *datagram,
				   const struct endpoint *client, const struct settings *settings)
{
	/* To the verifier the difference is any number: one state for all kinds of headers. */
	__u64 offset = (void *)datagram->payload - (void *)(long)ctx->data - sizeof(struct udphdr);
	__u32 core = 0, choice;

	if (!settings->cpumap)
		return XDP_PASS;
	choice = choose_core(ctx, datagram, client, offset, settings, &core);
	/* The answer for a core that is not in the map is the one that is given here. */
	if (choice == CORE_REDIRECTED && cores.redirect_map(core, XDP_PASS) != XDP_REDIRECT)
		choice = CORE_UNKNOWN;
	core_choices.increment(choice);
	return choice == CORE_REDIRECTED ? XDP_REDIRECT : XDP_PASS;
}

int xdp_ingress(struct xdp_md *ctx)
{
	struct cursor cursor = {.at = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end};
	struct datagram datagram = {};
	struct endpoint client = {};
	struct settings *settings;
	struct listener *listener;
	__u32 zero = 0, verdict;
	int action = XDP_ABORTED;

	settings = relay_settings.lookup(&zero);
	if (!settings || parse_datagram(&cursor, &datagram))
		return XDP_PASS;
	listener = find_listener(&datagram.destination);
	/* Not ours: the kernel's own business, which no counter should hold. */
	if (!listener)
		return XDP_PASS;
	if (settings->fastpath && forward_assured(ctx, &datagram, cursor.end, settings, listener, &action))
		return action;
	verdict = judge(&datagram, cursor.end, settings, listener, &client);
	verdicts.increment(verdict);
	return verdict == HAND_UP ? hand_up(ctx, &datagram, &client, settings) : XDP_DROP;
}
