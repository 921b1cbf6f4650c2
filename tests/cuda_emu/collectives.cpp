/* Where CUDA threads meet: block barriers, warp collectives, cp.async. A meeting is named by its source line, so that
 * arriving at another one is seen whatever the schedule was. */
#include "tests/cuda_emu/emulator.h"

#include <cstring>

namespace emu {
/* ---- block barrier ---- */
int block_barrier_red(int kind, int pred, const char *f, int l) {
    if (!cur) abort();
    if (in_barrier == 0)
        bar_f = f, bar_l = l, bar_kind = kind, bar_val = kind == 1;
    else if (bar_l != l || (bar_f != f && strcmp(bar_f, f)))
        fail("divergent __syncthreads: this thread is at %s:%d, others wait at %s:%d", f, l, bar_f, bar_l);
    if (kind == 0) bar_val += pred != 0;
    if (kind == 1) bar_val = bar_val && pred;
    if (kind == 2) bar_val = bar_val || pred;
    if (++in_barrier == alive) {
        if (alive != nth) fail("__syncthreads at %s:%d after %d threads of the block have exited", f, l, nth - alive);
        cur->state = IN_BARRIER; /* requeued with the others, so who goes first is the policy's choice */
        release_barrier();
        Thread *me = cur;
        int n = pick();
        if (&th[n] != me) go(&me->sp, &me->asan_fake, &th[n], false);
        me->state = RUNNABLE;
    } else {
        wait_here(IN_BARRIER, f, l);
    }
    return bar_result;
}
void block_barrier(const char *f, int l) {
    block_barrier_red(0, 0, f, l);
}

void release_barrier() {
    bar_result = bar_val;
    in_barrier = 0, bar_val = bar_kind == 1;
    emu_race_block_sync();
    for (int k = 0; k < nth; k++) {
        int i = policy == REV ? nth - 1 - k : k;
        if (th[i].state == IN_BARRIER) th[i].state = RUNNABLE, make_ready(i);
    }
}

/* ---- warp collectives ---- */
static const char *kind_name(int k) {
    static const char *n[] = {"__syncwarp",      "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync",
                              "__shfl_xor_sync", "vote",        "reduce_add",     "reduce_min",
                              "reduce_max",      "reduce_and",  "reduce_or",      "mma/ldmatrix"};
    return n[k];
}
static void complete(Pending &p, int base) {
    Thread *t = th + base;
    uint64_t acc = 0;
    bool first = true;
    if (p.kind == SYNCWARP) emu_race_warp_sync(base / 32, p.arrived);
    if (p.kind >= SHFL_IDX && p.kind <= SHFL_XOR) {
        for (int i = 0; i < 32; i++) {
            if (!(p.arrived >> i & 1)) continue;
            int w = t[i].p1, seg = i & ~(w - 1), src = i;
            int d = t[i].p0;
            if (p.kind == SHFL_IDX) src = seg + (d & (w - 1));
            if (p.kind == SHFL_UP) src = i - d < seg ? i : i - d;
            if (p.kind == SHFL_DOWN) src = i + d >= seg + w ? i : i + d;
            if (p.kind == SHFL_XOR) src = (i ^ d) >= seg + w ? i : i ^ d;
            if (p.arrived >> src & 1)
                t[i].out = t[src].in;
            else
                t[i].out = 0xDEADBEEFDEADBEEFull; /* undefined on the GPU: make it visible */
        }
    } else if (p.kind == WIDE) {
        const void *in[32];
        void *out[32];
        for (int i = 0; i < 32; i++)
            in[i] = t[i].vin, out[i] = t[i].vout;
        const void *lo = arg_lo;
        arg_lo = nullptr; /* the body reads and writes other lanes' registers: not for the checker */
        p.fn(in, out);
        arg_lo = lo;
    } else if (p.kind >= BALLOT) {
        for (int i = 0; i < 32; i++) {
            if (!(p.arrived >> i & 1)) continue;
            uint64_t v = t[i].in;
            switch (p.kind) {
                case BALLOT: acc |= (v & 1) << i; break;
                case RED_ADD: acc += v; break;
                case RED_MIN: acc = first || (int64_t)v < (int64_t)acc ? v : acc; break;
                case RED_MAX: acc = first || (int64_t)v > (int64_t)acc ? v : acc; break;
            }
            first = false;
        }
        for (int i = 0; i < 32; i++)
            t[i].out = acc;
    }
}
void check_warp(Warp &w, int base) { /* after an exit: did that complete a collective? */
    for (int k = 0; k < w.npend; k++) {
        Pending &p = w.pend[k];
        if (p.arrived && p.arrived == (p.mask & w.alive)) {
            if (p.kind == WIDE) fail("lane exits while its warp waits in mma/ldmatrix at %s:%d", p.f, p.l);
            complete(p, base);
            unsigned a = p.arrived;
            w.pend[k--] = w.pend[--w.npend];
            for (int i = 0; i < 32; i++)
                if (a >> i & 1) th[base + i].state = RUNNABLE, make_ready(base + i);
        }
    }
}
static void arrive(int kind, unsigned mask, const char *f, int l, wide_fn fn, const char *what) {
    if (!cur) abort();
    Thread *me = cur;
    Warp &w = warps[me->warp];
    int base = me->warp * 32;
    unsigned bit = 1u << me->lane;
    if (!(mask & bit)) fail("%s at %s:%d: the calling lane %d is not in its mask %08x", kind_name(kind), f, l, me->lane, mask);
    Pending *p = nullptr;
    for (int k = 0; k < w.npend; k++) {
        if (w.pend[k].mask == mask)
            p = &w.pend[k];
        else if (w.pend[k].mask & mask & w.alive)
            fail("%s at %s:%d, mask %08x, overlaps lanes waiting in %s at %s:%d, mask %08x", kind_name(kind), f, l, mask,
                 kind_name(w.pend[k].kind), w.pend[k].f, w.pend[k].l, w.pend[k].mask);
    }
    if (!p) {
        p = &w.pend[w.npend++];
        *p = Pending{mask, 0, kind, 0, f, what, l, fn};
    } else if (p->kind != kind || p->l != l || (p->f != f && strcmp(p->f, f)) || p->fn != fn) {
        fail("divergent warp collective: lane %d is in %s at %s:%d, others wait in %s at %s:%d", me->lane,
             what ? what : kind_name(kind), f, l, p->what ? p->what : kind_name(p->kind), p->f, p->l);
    }
    p->arrived |= bit;
    if (p->arrived == (mask & w.alive)) {
        unsigned a = p->arrived;
        complete(*p, base);
        *p = w.pend[--w.npend];
        for (int k = 0; k < 32; k++) {
            int i = policy == REV ? 31 - k : k;
            if ((a >> i & 1) && base + i != me->linear) th[base + i].state = RUNNABLE, make_ready(base + i);
        }
        if (policy == PRIO || (policy == RAND && (rng() & 1))) { /* sometimes let others go first */
            make_ready(me->linear);
            int n = pick();
            if (&th[n] != me) go(&me->sp, &me->asan_fake, &th[n], false);
            me->state = RUNNABLE;
        }
    } else {
        wait_here(IN_WARP, f, l);
    }
}
uint64_t warp_op(Kind k, unsigned mask, uint64_t v, int p0, int p1, const char *f, int l) {
    cur->in = v, cur->p0 = p0, cur->p1 = p1;
    if (k >= SHFL_IDX && k <= SHFL_XOR && (p1 <= 0 || p1 > 32 || (p1 & (p1 - 1)))) fail("shuffle width %d at %s:%d", p1, f, l);
    arrive(k, mask, f, l, nullptr, nullptr);
    return cur->out;
}
void warp_wide(wide_fn fn, const void *in, void *out, const char *what, const char *f, int l) {
    cur->vin = in, cur->vout = out;
    if (warps[cur->warp].alive != 0xffffffffu) fail("%s at %s:%d in a warp with exited or missing lanes", what, f, l);
    arrive(WIDE, 0xffffffffu, f, l, fn, what);
}

/* ---- cp.async: the copy happens as late as the program allows ---- */
void cp_async(void *dst, const void *src, size_t n, size_t src_n) {
    if (!is_shared(dst, n)) fail("cp.async destination %p is not in shared memory", dst);
    if (((uintptr_t)dst | (uintptr_t)src) % n) fail("cp.async of %zu bytes is not aligned", n);
    access(dst, n, 1, 0, __builtin_return_address(0));
    if (src_n) access(src, src_n, 0, 0, __builtin_return_address(0));
    memset(dst, 0xFF, n); /* until waited for, the destination holds garbage */
    cpq[cur->linear].push_back(CpAsync{dst, src, (uint32_t)n, (uint32_t)src_n, cpgroup[cur->linear]});
}
void cp_async_commit() {
    cpgroup[cur->linear]++;
}
void cp_async_wait(int left) {
    auto &q = cpq[cur->linear];
    uint32_t g = cpgroup[cur->linear];
    size_t k = 0;
    for (; k < q.size() && (int)(g - q[k].group) > left; k++) {
        access(q[k].dst, q[k].n, 1, 0, __builtin_return_address(0));
        memset(q[k].dst, 0, q[k].n);
        memcpy(q[k].dst, q[k].src, q[k].src_n);
    }
    q.erase(q.begin(), q.begin() + (long)k);
}

} /* namespace emu */
