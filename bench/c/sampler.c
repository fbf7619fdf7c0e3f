// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Where a task is in the kernel, some thousand times a second: run by the clock of its CPU time. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/bpf_perf_event.h>

/* Stacks are told apart by a hash: large enough that few meet. */
#define STACKS 16384

BPF_STACK_TRACE(stacks, STACKS);
/* By the id of a stack; negative where there is none (-EFAULT: the task was in user space). */
BPF_HASH(samples, int, __u64, STACKS);

int sample(struct bpf_perf_event_data *ctx)
{
	int id = stacks.get_stackid(&ctx->regs, 0);

	samples.increment(id);
	return 0;
}
