/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* SipHash-1-3 (Aumasson, Bernstein) of an endpoint: keyed, so that nobody can aim clients at one worker.
 * relay/core/steering.py computes the same.
 */
#ifndef RELAYCTL_HASH_H
#define RELAYCTL_HASH_H

#include "abi.h"

#define HASHED_BYTES 24

struct hash_state {
	__u64 v0, v1, v2, v3;
};

static inline __attribute__((always_inline)) __u64 rotate_left(__u64 value, int bits)
{
	return value << bits | value >> (64 - bits);
}

static inline __attribute__((always_inline)) void hash_round(struct hash_state *state)
{
	state->v0 += state->v1;
	state->v2 += state->v3;
	state->v1 = rotate_left(state->v1, 13) ^ state->v0;
	state->v3 = rotate_left(state->v3, 16) ^ state->v2;
	state->v0 = rotate_left(state->v0, 32);
	state->v2 += state->v1;
	state->v0 += state->v3;
	state->v1 = rotate_left(state->v1, 17) ^ state->v2;
	state->v3 = rotate_left(state->v3, 21) ^ state->v0;
	state->v2 = rotate_left(state->v2, 32);
}

static inline __attribute__((always_inline)) void hash_word(struct hash_state *state, __u64 word)
{
	state->v3 ^= word;
	hash_round(state);
	state->v0 ^= word;
}

static inline __attribute__((always_inline)) __u64 hash_endpoint(const struct endpoint *endpoint,
								 const __u64 key[2])
{
	struct hash_state state = {
	    .v0 = key[0] ^ 0x736f6d6570736575ULL,
	    .v1 = key[1] ^ 0x646f72616e646f6dULL,
	    .v2 = key[0] ^ 0x6c7967656e657261ULL,
	    .v3 = key[1] ^ 0x7465646279746573ULL,
	};
	__u64 high, low;

	__builtin_memcpy(&high, endpoint->host, 8);
	__builtin_memcpy(&low, endpoint->host + 8, 8);
	hash_word(&state, high);
	hash_word(&state, low);
	hash_word(&state, endpoint->port);
	hash_word(&state, (__u64)HASHED_BYTES << 56);
	state.v2 ^= 0xff;
	hash_round(&state);
	hash_round(&state);
	hash_round(&state);
	return state.v0 ^ state.v1 ^ state.v2 ^ state.v3;
}

#endif
