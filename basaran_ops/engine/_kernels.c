/* What a step on a CPU does beside its matrix products: norms, rotary embeddings, gates, and attention of
 * decode rows over the slot cache. Each is one pass over its data in float32 registers; torch needs up to a
 * dozen passes, and its attention kernels split the work badly where a query is one row long.
 *
 * Functions take addresses and sizes; kernels.py, which alone calls them, has checked types and layouts.
 * Threads are those of the OpenMP runtime that torch has loaded already. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__)
#if !defined(__clang__) && __GNUC__ < 12
#error "this compiler cannot choose AVX2 at run time, and without it torch is faster"
#endif
#define CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))

enum type { FLOAT32, BFLOAT16 };

/* Registers of AVX2. Wider ones gain nothing where memory decides, and compilers lower wider types badly. */
#define LANES 8
typedef float vf __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t vp __attribute__((vector_size(4 * LANES), aligned(2), may_alias)); /* pairs of bfloat16 */
typedef uint16_t vh __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE size_t size_of(enum type t) { return t == FLOAT32 ? 4 : 2; }

INLINE const void *at(const void *base, size_t index, enum type t) {
    return (const char *)base + index * size_of(t);
}

INLINE float load1(const void *base, size_t i, enum type t) {
    if (t == FLOAT32) return ((const float *)base)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)base)[i] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE vf load(const void *base, size_t i, enum type t) {
    if (t == FLOAT32) return *(const vf *)((const float *)base + i);
    vh half = *(const vh *)((const uint16_t *)base + i);
    return (vf)(__builtin_convertvector(half, vu) << 16);
}

/* To bfloat16: to the nearest, ties to even, as torch rounds; a NaN keeps a bit that says so. */
INLINE void store1(void *base, size_t i, float value, enum type t) {
    if (t == FLOAT32) { ((float *)base)[i] = value; return; }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
    ((uint16_t *)base)[i] = (uint16_t)((value != value ? bits | 0x400000 : rounded) >> 16);
}

INLINE void store(void *base, size_t i, vf value, enum type t) {
    if (t == FLOAT32) { *(vf *)((float *)base + i) = value; return; }
    vu bits = (vu)value;
    vu rounded = bits + 0x7fff + ((bits >> 16) & 1);
    vu nan = (vu)(value != value);
    vu chosen = ((rounded & ~nan) | ((bits | 0x400000) & nan)) >> 16;
    *(vh *)((uint16_t *)base + i) = __builtin_convertvector(chosen, vh);
}

typedef float narrow __attribute__((vector_size(2 * LANES)));

INLINE float sum(vf v) {
    union { vf whole; narrow halves[2]; } both = {v};
    narrow four = both.halves[0] + both.halves[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* Two registers' worth of values. Those of bfloat16 come apart into even and odd ones, which takes two
 * instructions where widening them in order takes five; who sums over them does not care. */
INLINE void load_pair(const void *base, size_t i, enum type t, vf *first, vf *second) {
    if (t == FLOAT32) {
        *first = load(base, i, FLOAT32);
        *second = load(base, i + LANES, FLOAT32);
        return;
    }
    vu both = *(const vp *)((const uint16_t *)base + i);
    *first = (vf)(both << 16);
    *second = (vf)(both & 0xffff0000u);
}

/* Where load_pair puts value i of an array whose whole pairs end at `whole`. */
INLINE size_t paired(size_t i, size_t whole, enum type t) {
    if (t == FLOAT32 || i >= whole) return i;
    size_t within = i % (2 * LANES);
    return i - within + within / 2 + within % 2 * LANES;
}

INLINE vf splat(float value) { return (vf){} + value; }

/* exp by 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes' coefficients); relative error 2e-7. Arguments
 * are at most 0 here; below -87 the result is 0. */
INLINE vf vexp(vf x) {
    vf low = splat(-87.0f);
    vi dead = x < low;
    x = (vf)(((vi)x & ~dead) | ((vi)low & dead));
    vf scaled = x * 1.44269504f;
    vi n = __builtin_convertvector(scaled - 0.5f, vi); /* truncates towards 0: the nearest of a negative */
    vf r = __builtin_convertvector(n, vf);
    x = x - r * 0.693359375f + r * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * x + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    vf y = p * x * x + x + 1.0f;
    vf power = (vf)((n + 127) << 23);
    return (vf)((vi)(y * power) & ~dead);
}

/* -- norms ---------------------------------------------------------------------------------------- */

struct norm {
    const void *x, *residual; /* [rows, width]; residual may be NULL */
    const float *weight;      /* [width] */
    void *out, *total;        /* [rows, width]; total = x + residual */
    Py_ssize_t rows, width;
    float eps;
};

INLINE void norm_row(const struct norm *n, Py_ssize_t row, enum type t) {
    size_t first = (size_t)row * n->width;
    Py_ssize_t width = n->width, i;
    const void *x = at(n->x, first, t);
    if (n->residual) {
        const void *residual = at(n->residual, first, t);
        void *total = (void *)at(n->total, first, t);
        for (i = 0; i + LANES <= width; i += LANES) store(total, i, load(x, i, t) + load(residual, i, t), t);
        for (; i < width; i++) store1(total, i, load1(x, i, t) + load1(residual, i, t), t);
        x = total;
    }
    vf squares = {};
    float rest = 0;
    for (i = 0; i + LANES <= width; i += LANES) {
        vf v = load(x, i, t);
        squares += v * v;
    }
    for (; i < width; i++) rest += load1(x, i, t) * load1(x, i, t);
    float factor = 1.0f / sqrtf((sum(squares) + rest) / (float)width + n->eps);
    void *out = (void *)at(n->out, first, t);
    for (i = 0; i + LANES <= width; i += LANES)
        store(out, i, load(x, i, t) * factor * load(n->weight, i, FLOAT32), t);
    for (; i < width; i++) store1(out, i, load1(x, i, t) * factor * n->weight[i], t);
}

CLONES static void norm_float32(const void *job, Py_ssize_t row) { norm_row(job, row, FLOAT32); }
CLONES static void norm_bfloat16(const void *job, Py_ssize_t row) { norm_row(job, row, BFLOAT16); }

/* -- rotary embeddings (Su et al. 2021), halves paired as in GPT-NeoX -------------------------------- */

struct rotation {
    const void *x;        /* [tokens, heads, dim] by strides, in elements */
    const void *cos, *sin; /* [tokens, dim] */
    void *out;            /* [tokens, heads, dim] */
    Py_ssize_t tokens, heads, dim, token_stride, head_stride;
};

INLINE void rotate_token(const struct rotation *r, Py_ssize_t token, enum type t) {
    Py_ssize_t half = r->dim / 2, i;
    const void *cos = at(r->cos, token * r->dim, t), *sin = at(r->sin, token * r->dim, t);
    for (Py_ssize_t head = 0; head < r->heads; head++) {
        const void *x = at(r->x, token * r->token_stride + head * r->head_stride, t);
        void *out = (void *)at(r->out, (token * r->heads + head) * r->dim, t);
        for (i = 0; i + LANES <= half; i += LANES) {
            vf a = load(x, i, t), b = load(x, i + half, t);
            store(out, i, a * load(cos, i, t) - b * load(sin, i, t), t);
            store(out, i + half, b * load(cos, i + half, t) + a * load(sin, i + half, t), t);
        }
        for (; i < half; i++) {
            float a = load1(x, i, t), b = load1(x, i + half, t);
            store1(out, i, a * load1(cos, i, t) - b * load1(sin, i, t), t);
            store1(out, i + half, b * load1(cos, i + half, t) + a * load1(sin, i + half, t), t);
        }
    }
}

CLONES static void rotate_float32(const void *job, Py_ssize_t row) { rotate_token(job, row, FLOAT32); }
CLONES static void rotate_bfloat16(const void *job, Py_ssize_t row) { rotate_token(job, row, BFLOAT16); }

/* -- gates: silu(gate) * up (Shazeer 2020) ----------------------------------------------------------- */

struct gate {
    const void *gate, *up; /* [rows, width], rows `stride` elements apart */
    void *out;             /* [rows, width] */
    Py_ssize_t rows, width, gate_stride, up_stride;
};

INLINE vf silu(vf x) {
    vi negative = x < 0;
    vf e = vexp((vf)((vi)x | (vi)((vu){} + 0x80000000u)));
    vf top = (vf)(((vi)e & negative) | ((vi)splat(1.0f) & ~negative));
    return x * (top / (1.0f + e));
}

INLINE void gate_row(const struct gate *g, Py_ssize_t row, enum type t) {
    const void *gate = at(g->gate, row * g->gate_stride, t), *up = at(g->up, row * g->up_stride, t);
    void *out = (void *)at(g->out, row * g->width, t);
    Py_ssize_t i;
    for (i = 0; i + LANES <= g->width; i += LANES) store(out, i, silu(load(gate, i, t)) * load(up, i, t), t);
    for (; i < g->width; i++) {
        float x = load1(gate, i, t);
        store1(out, i, x / (1.0f + expf(-x)) * load1(up, i, t), t);
    }
}

CLONES static void gate_float32(const void *job, Py_ssize_t row) { gate_row(job, row, FLOAT32); }
CLONES static void gate_bfloat16(const void *job, Py_ssize_t row) { gate_row(job, row, BFLOAT16); }

/* -- attention of decode rows ------------------------------------------------------------------------
 * Each key head of a row is split into parts of up to PART keys, so that a long row is shared among threads;
 * a part keeps its running maximum, sum and weighted values (Milakov and Gimelshein 2018), and the parts
 * are joined at the end. */

#define PART 512
#define BLOCK 64
#define TILE 4 /* query heads that share one pass over a block */
#define KEYS 2 /* keys taken at once, so that sums do not wait for each other */
#define UNROLL _Pragma("GCC unroll 4")

struct decode {
    const void *query;          /* [rows, heads, dim] by strides */
    const void *keys, *values;  /* [slots, kv_heads, max_length, dim | value_dim] */
    const int64_t *slots, *lengths; /* [rows] */
    const float *sinks;         /* [heads] or NULL */
    void *out;                  /* [rows, heads, value_dim] */
    Py_ssize_t rows, heads, kv_heads, dim, value_dim, max_length, row_stride, head_stride, window;
    float scale, softcap;       /* softcap 0: none */
    Py_ssize_t parts;           /* of the longest row */
    float *partial;             /* [rows, kv_heads, parts, group, value_dim + 2] */
};

/* Dot products of `tile` queries [tile, dim], in paired order, with `count` <= KEYS neighbouring keys. */
INLINE void dot_keys(
    const float *query, const void *keys, Py_ssize_t dim, int tile, int count, float *scores, enum type t
) {
    vf sums[TILE][KEYS];
    Py_ssize_t i;
    UNROLL for (int g = 0; g < tile; g++)
        UNROLL for (int k = 0; k < count; k++) sums[g][k] = splat(0);
    for (i = 0; i + 2 * LANES <= dim; i += 2 * LANES) {
        UNROLL for (int k = 0; k < count; k++) {
            vf first, second;
            load_pair(at(keys, k * dim, t), i, t, &first, &second);
            UNROLL for (int g = 0; g < tile; g++) {
                sums[g][k] += first * load(query + g * dim, i, FLOAT32);
                sums[g][k] += second * load(query + g * dim, i + LANES, FLOAT32);
            }
        }
    }
    UNROLL for (int g = 0; g < tile; g++) {
        UNROLL for (int k = 0; k < count; k++) {
            float total = sum(sums[g][k]);
            for (Py_ssize_t j = i; j < dim; j++) total += load1(at(keys, k * dim, t), j, t) * query[g * dim + j];
            scores[g * BLOCK + k] = total;
        }
    }
}

INLINE void scores_of(
    const float *query, const void *keys, Py_ssize_t count, Py_ssize_t dim, int tile, float *scores, enum type t
) {
    Py_ssize_t key = 0;
    for (; key + KEYS <= count; key += KEYS)
        dot_keys(query, at(keys, key * dim, t), dim, tile, KEYS, scores + key, t);
    for (; key < count; key++) dot_keys(query, at(keys, key * dim, t), dim, tile, 1, scores + key, t);
}

/* out [tile, dim], in paired order, += weights [tile, count] x values [count, dim] */
INLINE void add_values(
    const float *weights, const void *values, Py_ssize_t count, Py_ssize_t dim, int tile, float *out,
    Py_ssize_t out_stride, enum type t
) {
    Py_ssize_t i;
    for (i = 0; i + 2 * LANES <= dim; i += 2 * LANES) {
        vf firsts[TILE], seconds[TILE];
        UNROLL for (int g = 0; g < tile; g++) {
            firsts[g] = load(out + g * out_stride, i, FLOAT32);
            seconds[g] = load(out + g * out_stride, i + LANES, FLOAT32);
        }
        for (Py_ssize_t key = 0; key < count; key++) {
            vf first, second;
            load_pair(at(values, key * dim, t), i, t, &first, &second);
            UNROLL for (int g = 0; g < tile; g++) {
                firsts[g] += first * weights[g * BLOCK + key];
                seconds[g] += second * weights[g * BLOCK + key];
            }
        }
        UNROLL for (int g = 0; g < tile; g++) {
            store(out + g * out_stride, i, firsts[g], FLOAT32);
            store(out + g * out_stride, i + LANES, seconds[g], FLOAT32);
        }
    }
    for (; i < dim; i++)
        for (int g = 0; g < tile; g++)
            for (Py_ssize_t key = 0; key < count; key++)
                out[g * out_stride + i] += weights[g * BLOCK + key] * load1(values, key * dim + i, t);
}

/* Turn a block's scores into weights; the sums so far are scaled to the new maximum. */
INLINE void weigh(float *scores, Py_ssize_t count, float softcap, float *state, Py_ssize_t value_dim) {
    float *maximum = state + value_dim, *total = maximum + 1, highest = *maximum;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (softcap) scores[i] = softcap * tanhf(scores[i] / softcap);
        if (scores[i] > highest) highest = scores[i];
    }
    for (Py_ssize_t i = count; i < BLOCK; i++) scores[i] = -INFINITY;
    float shrink = *maximum == -INFINITY ? 0 : expf(*maximum - highest);
    vf sums = {};
    for (Py_ssize_t i = 0; i < BLOCK; i += LANES) {
        vf e = vexp(load(scores, i, FLOAT32) - highest);
        store(scores, i, e, FLOAT32);
        sums += e;
    }
    *total = *total * shrink + sum(sums);
    *maximum = highest;
    for (Py_ssize_t i = 0; i < value_dim; i++) state[i] *= shrink;
}

INLINE void decode_tile(
    const struct decode *d, const float *query, const void *keys, const void *values, Py_ssize_t count, int tile,
    float *state, enum type t
) {
    float scores[TILE * BLOCK];
    Py_ssize_t stride = d->value_dim + 2;
    for (Py_ssize_t first = 0; first < count; first += BLOCK) {
        Py_ssize_t block = count - first < BLOCK ? count - first : BLOCK;
        scores_of(query, at(keys, first * d->dim, t), block, d->dim, tile, scores, t);
        for (int g = 0; g < tile; g++) weigh(scores + g * BLOCK, block, d->softcap, state + g * stride, d->value_dim);
        add_values(scores, at(values, first * d->value_dim, t), block, d->value_dim, tile, state, stride, t);
    }
}

INLINE void decode_part(const struct decode *d, Py_ssize_t item, float *query, enum type t) {
    Py_ssize_t part = item % d->parts, head = item / d->parts % d->kv_heads, row = item / d->parts / d->kv_heads;
    Py_ssize_t length = d->lengths[row], begin = d->window && length > d->window ? length - d->window : 0;
    Py_ssize_t first = begin + part * PART, count = length - first < PART ? length - first : PART;
    if (count <= 0) return;
    Py_ssize_t group = d->heads / d->kv_heads, stride = d->value_dim + 2;
    size_t cached = ((size_t)d->slots[row] * d->kv_heads + head) * d->max_length + first;
    const void *keys = at(d->keys, cached * d->dim, t), *values = at(d->values, cached * d->value_dim, t);
    float *state = d->partial + item * group * stride;
    Py_ssize_t whole = d->dim - d->dim % (2 * LANES);
    for (Py_ssize_t g = 0; g < group; g++) {
        const void *q = at(d->query, row * d->row_stride + (head * group + g) * d->head_stride, t);
        for (Py_ssize_t i = 0; i < d->dim; i++)
            query[g * d->dim + paired(i, whole, t)] = load1(q, i, t) * d->scale;
        memset(state + g * stride, 0, d->value_dim * sizeof(float));
        state[g * stride + d->value_dim] = -INFINITY;
        state[g * stride + d->value_dim + 1] = 0;
    }
    for (Py_ssize_t g = 0; g < group; g += TILE) {
        const float *q = query + g * d->dim;
        float *s = state + g * stride;
        switch (group - g) { /* a constant tile lets the compiler unroll */
        case 1: decode_tile(d, q, keys, values, count, 1, s, t); break;
        case 2: decode_tile(d, q, keys, values, count, 2, s, t); break;
        case 3: decode_tile(d, q, keys, values, count, 3, s, t); break;
        default: decode_tile(d, q, keys, values, count, 4, s, t);
        }
    }
}

CLONES static void decode_float32(const struct decode *d, Py_ssize_t item, float *query) { decode_part(d, item, query, FLOAT32); }
CLONES static void decode_bfloat16(const struct decode *d, Py_ssize_t item, float *query) { decode_part(d, item, query, BFLOAT16); }

/* One row's parts into its output. */
static void join_parts(const struct decode *d, Py_ssize_t row, enum type t) {
    Py_ssize_t group = d->heads / d->kv_heads, stride = d->value_dim + 2, length = d->lengths[row];
    if (d->window && length > d->window) length = d->window;
    Py_ssize_t parts = (length + PART - 1) / PART;
    for (Py_ssize_t head = 0; head < d->heads; head++) {
        const float *first =
            d->partial + ((row * d->kv_heads + head / group) * d->parts * group + head % group) * stride;
        float highest = d->sinks ? d->sinks[head] : -INFINITY, total = 0;
        for (Py_ssize_t part = 0; part < parts; part++) {
            float maximum = first[part * group * stride + d->value_dim];
            if (maximum > highest) highest = maximum;
        }
        if (d->sinks) total = expf(d->sinks[head] - highest);
        float shares[parts];
        for (Py_ssize_t part = 0; part < parts; part++) {
            const float *state = first + part * group * stride;
            shares[part] = expf(state[d->value_dim] - highest);
            total += state[d->value_dim + 1] * shares[part];
        }
        void *out = (void *)at(d->out, (row * d->heads + head) * d->value_dim, t);
        for (Py_ssize_t i = 0; i < d->value_dim; i++) {
            float value = 0;
            size_t place = paired(i, d->value_dim - d->value_dim % (2 * LANES), t);
            for (Py_ssize_t part = 0; part < parts; part++) value += first[part * group * stride + place] * shares[part];
            store1(out, i, value / total, t);
        }
    }
}

/* -- what Python calls ------------------------------------------------------------------------------ */

/* Integers, addresses among them, in the order of the call; false with an exception set. */
static int integers(PyObject *const *args, Py_ssize_t given, Py_ssize_t count, int64_t *out) {
    if (given != count) {
        PyErr_Format(PyExc_TypeError, "%zd arguments expected, %zd given", count, given);
        return 0;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        out[i] = PyLong_AsLongLong(args[i]);
        if (out[i] == -1 && PyErr_Occurred()) return 0;
    }
    return 1;
}

/* Elements below which a second thread costs more than it does. */
#define SHARED_WORK 32768

typedef void row_function(const void *job, Py_ssize_t row);

static void for_rows(row_function *call, const void *job, Py_ssize_t rows, Py_ssize_t work, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && work >= SHARED_WORK)
    for (Py_ssize_t row = 0; row < rows; row++) call(job, row);
}

static PyObject *rms_norm(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t a[9];
    if (given != 10) return PyErr_Format(PyExc_TypeError, "10 arguments expected, %zd given", given);
    double eps = PyFloat_AsDouble(args[9]);
    if (PyErr_Occurred() || !integers(args, 9, 9, a)) return NULL;
    struct norm n = {(void *)a[0], (void *)a[1], (void *)a[2], (void *)a[3], (void *)a[4], a[5], a[6], (float)eps};
    int threads = (int)a[8];
    for_rows(a[7] == FLOAT32 ? norm_float32 : norm_bfloat16, &n, n.rows, n.rows * n.width, threads);
    Py_RETURN_NONE;
}

static PyObject *rotate(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t a[11];
    if (!integers(args, given, 11, a)) return NULL;
    struct rotation r = {(void *)a[0], (void *)a[1], (void *)a[2], (void *)a[3], a[4], a[5], a[6], a[7], a[8]};
    int threads = (int)a[10];
    Py_ssize_t work = r.tokens * r.heads * r.dim;
    for_rows(a[9] == FLOAT32 ? rotate_float32 : rotate_bfloat16, &r, r.tokens, work, threads);
    Py_RETURN_NONE;
}

static PyObject *gate(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t a[9];
    if (!integers(args, given, 9, a)) return NULL;
    struct gate g = {(void *)a[0], (void *)a[1], (void *)a[2], a[3], a[4], a[5], a[6]};
    int threads = (int)a[8];
    for_rows(a[7] == FLOAT32 ? gate_float32 : gate_bfloat16, &g, g.rows, g.rows * g.width, threads);
    Py_RETURN_NONE;
}

/* One tensor of new keys or values, [tokens, heads, dim] by strides, into [slots, heads, max_length, dim]. */
static PyObject *write_slots(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t a[11];
    if (!integers(args, given, 11, a)) return NULL;
    const char *source = (void *)a[0];
    char *cache = (void *)a[1];
    const int64_t *slots = (void *)a[2], *positions = (void *)a[3];
    Py_ssize_t tokens = a[4], heads = a[5], max_length = a[8], size = a[10], dim = a[9] * size;
    Py_ssize_t token_stride = a[6] * size, head_stride = a[7] * size;
    for (Py_ssize_t token = 0; token < tokens; token++)
        for (Py_ssize_t head = 0; head < heads; head++)
            memcpy(
                cache + ((slots[token] * heads + head) * max_length + positions[token]) * dim,
                source + token * token_stride + head * head_stride, dim
            );
    Py_RETURN_NONE;
}

static void decode_all(struct decode *d, int threads, enum type t) {
    Py_ssize_t items = d->rows * d->kv_heads * d->parts, group = d->heads / d->kv_heads;
#pragma omp parallel num_threads(threads) if (threads > 1 && items > 1)
    {
        float query[group * d->dim];
        /* Dynamic: a thread that the system takes away for a while leaves its share to the others. */
#pragma omp for schedule(dynamic, 1)
        for (Py_ssize_t item = 0; item < items; item++) {
            if (t == FLOAT32) decode_float32(d, item, query);
            else decode_bfloat16(d, item, query);
        }
    }
    for (Py_ssize_t row = 0; row < d->rows; row++) join_parts(d, row, t);
}

static PyObject *decode(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t a[19];
    if (given != 21) return PyErr_Format(PyExc_TypeError, "21 arguments expected, %zd given", given);
    double scale = PyFloat_AsDouble(args[19]), softcap = PyFloat_AsDouble(args[20]);
    if (PyErr_Occurred() || !integers(args, 19, 19, a)) return NULL;
    struct decode d = {
        .query = (void *)a[0], .keys = (void *)a[1], .values = (void *)a[2], .slots = (void *)a[3],
        .lengths = (void *)a[4], .sinks = (void *)a[5], .out = (void *)a[6], .rows = a[7], .heads = a[8],
        .kv_heads = a[9], .dim = a[10], .value_dim = a[11], .max_length = a[12], .row_stride = a[13],
        .head_stride = a[14], .window = a[15], .scale = (float)scale, .softcap = (float)softcap,
    };
    Py_ssize_t longest = a[16];
    if (d.window && longest > d.window) longest = d.window;
    d.parts = (longest + PART - 1) / PART;
    size_t states = (size_t)d.rows * d.heads * d.parts;
    d.partial = malloc(states * (d.value_dim + 2) * sizeof(float));
    if (!d.partial) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    decode_all(&d, (int)a[18], a[17] == FLOAT32 ? FLOAT32 : BFLOAT16);
    Py_END_ALLOW_THREADS
    free(d.partial);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"rms_norm", (PyCFunction)(void (*)(void))rms_norm, METH_FASTCALL, NULL},
    {"rotate", (PyCFunction)(void (*)(void))rotate, METH_FASTCALL, NULL},
    {"gate", (PyCFunction)(void (*)(void))gate, METH_FASTCALL, NULL},
    {"write_slots", (PyCFunction)(void (*)(void))write_slots, METH_FASTCALL, NULL},
    {"decode", (PyCFunction)(void (*)(void))decode, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_kernels", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
