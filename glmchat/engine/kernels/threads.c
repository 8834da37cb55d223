/* Which processor each thread runs on, while Linux does not see to it.

   Threads that wait for another soon sleep (engine/environ.py). Where the processors of a virtual machine have idled,
   one is woken on the processor of the thread that wakes it; and as they sleep by turns, nothing seems wrong with that.
   So all of them shared one for 50 ms whenever somebody had paused, to read or to type, and what came then took twice
   as long. Now each keeps to one of its own then. Later they are free again, to make room for other programs. */

#define _GNU_SOURCE
#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kernels.h"

enum { MOST_THREADS = 256 };
#define PAUSE 0.02 /* seconds after which they are told apart, */
#define APART 0.1  /* and for how many */

static _Thread_local struct {
    double left, until;
    int threads, apart; /* that there were, of which these are kept apart */
    int own;            /* processor of the one that calls */
    cpu_set_t usual;    /* those it may run on otherwise, and the others too */
    pid_t ids[MOST_THREADS];
} keeping;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* The first of the processors that share a core with it. */
static int core_of(int cpu) {
    static int known[CPU_SETSIZE]; /* + 1 */
    if (known[cpu]) return known[cpu] - 1;
    char path[80];
    int first = cpu;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *const file = fopen(path, "r");
    if (file) {
        if (fscanf(file, "%d", &first) != 1 || first < 0 || first >= CPU_SETSIZE) first = cpu;
        fclose(file);
    }
    known[cpu] = first + 1;
    return first;
}

/* A processor that is not taken, of a core that is not either if there is one; -1 if all are. */
static int free_one(const cpu_set_t *taken) {
    cpu_set_t cores;
    int found = -1;
    CPU_ZERO(&cores);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, taken)) CPU_SET(core_of(cpu), &cores);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &keeping.usual) && !CPU_ISSET(cpu, taken)) {
            if (!CPU_ISSET(core_of(cpu), &cores)) return cpu;
            if (found < 0) found = cpu;
        }
    return found;
}

static void keep_to(pid_t thread, int cpu) {
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(cpu, &only);
    sched_setaffinity(thread, sizeof only, &only);
}

static void let_go(void) {
    for (int i = 1; i < keeping.apart; i++) sched_setaffinity(keeping.ids[i], sizeof keeping.usual, &keeping.usual);
    keeping.apart = 0;
}

/* Each stays where it is, or goes to where none is. */
static void keep_apart(void) {
    const int count = keeping.threads;
    pid_t *const ids = keeping.ids; /* of the one that calls, for all of them */
    int at[MOST_THREADS], came = 0;
    cpu_set_t taken;
    if (count < 2 || count > MOST_THREADS || sched_getaffinity(0, sizeof keeping.usual, &keeping.usual)) return;
#pragma omp parallel
    {
        const int mine = omp_get_thread_num();
        if (!mine) came = omp_get_num_threads();
        ids[mine] = (pid_t)syscall(SYS_gettid);
        at[mine] = sched_getcpu();
    }
    if (came != count) return;
    CPU_ZERO(&taken);
    for (int i = 0; i < count; i++)
        if (at[i] < 0 || CPU_ISSET(at[i], &taken))
            at[i] = -1;
        else
            CPU_SET(at[i], &taken);
    for (int i = 0; i < count; i++)
        if (at[i] < 0) {
            at[i] = free_one(&taken);
            if (at[i] < 0) return; /* they are too many */
            CPU_SET(at[i], &taken);
        }
    for (int i = 1; i < count; i++) keep_to(ids[i], at[i]);
    keeping.own = at[0];
    keeping.apart = count;
}

/* Before and after all that the threads do in one go. The one that calls keeps to a processor only in between, as what
   it starts would have to as well. */
void glmchat_begin(void) {
    const double now = seconds();
    const bool others = keeping.threads != omp_get_max_threads(); /* new ones may run where their maker may */
    if (others || now > keeping.until || now > keeping.left + PAUSE) let_go();
    if (others || now > keeping.left + PAUSE) {
        keeping.threads = omp_get_max_threads();
        keep_apart();
        keeping.until = now + APART;
    }
    if (keeping.apart) keep_to(0, keeping.own);
}

void glmchat_end(void) {
    if (keeping.apart) sched_setaffinity(0, sizeof keeping.usual, &keeping.usual);
    keeping.left = seconds();
}
