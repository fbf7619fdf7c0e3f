// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Both programs in one object: they share their maps. */
#include "xdp_ingress.c"
#include "reuseport_select.c"
