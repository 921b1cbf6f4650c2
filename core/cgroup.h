/* What the control group of this process leaves to it (cgroups(7), versions 1 and 2).
 *
 * A container is a control group: the machine may have 64 processors and 256 GiB, and the container two and four. Every
 * level from the process's own group up to the root may set a limit; the least counts.
 */
#ifndef NIBBLE_CORE_CGROUP_H
#define NIBBLE_CORE_CGROUP_H

#include <stddef.h>

/* Processors' worth of time per second that the quota allows; 0 when there is none. */
double cgroup_processors(void);
/* Bytes that may still be taken, file cache that the kernel can drop counted as free; SIZE_MAX when there is no limit. */
size_t cgroup_memory_left(void);

#endif
