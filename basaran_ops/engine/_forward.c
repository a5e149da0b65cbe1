/* A forward pass in bfloat16 as one call: a program of operations over token-major matrices, run by threads
 * that meet only where an operation reads what other threads wrote.
 *
 * Every number of a row is computed in the same order whatever rows stand beside it, so that a sequence gets
 * the same logits in every batch. forward.py, which alone calls this, has checked types and layouts. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) || __GNUC__ >= 12)

#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ISA "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma"
#define WIDE __attribute__((target(ISA)))
#define INLINE WIDE static inline __attribute__((always_inline))
#define WIDE8 __attribute__((target(ISA ",avx512vnni")))
#define INLINE8 WIDE8 static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef uint16_t bf16;

/* -- what a program is --------------------------------------------------------------------------------- */

enum kind { NORM, LINEAR, ROTATE, ATTENTION, GATE, ADD, ROWS, QUANTIZE, LINEAR8 };

#define FIELDS 24

/* An operation's fields, by its kind; forward.py writes them in this order. A matrix takes three: its place,
 * its first column and its row stride, both in elements. */
struct op {
    int64_t kind;
    int64_t of_rows; /* whether it has as many rows as logits are wanted, rather than tokens */
    int64_t field[FIELDS];
    double number[3];
};

/* A call's tokens, and where its matrices lie. */
struct call {
    const struct op *ops;
    int64_t count;
    char *const *places;
    int64_t tokens, rows, decodes;
    const int64_t *slots, *positions; /* [tokens] */
    const int64_t *chunks;            /* [chunk_count, 2]: first row and length of what is attended in tiles */
    int64_t chunk_count;
    const int64_t *row_ids; /* [rows] */
    int64_t *profile;       /* nanoseconds by kind, or NULL */
};

struct team {
    int size;
    atomic_int arrived, generation;
    atomic_long next[2]; /* items of the operations at hand and after it */
};

/* Where a thread waits for longer than an operation lasts, others have its core: it gives up its own. */
#define SPINS 2000

static void meet(struct team *team) {
    if (team->size == 1) return;
    int generation = atomic_load_explicit(&team->generation, memory_order_acquire);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == team->size - 1) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_fetch_add_explicit(&team->generation, 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&team->generation, memory_order_acquire) == generation; spins++)
        if (spins < SPINS) _mm_pause();
        else sched_yield();
}

struct matrix {
    bf16 *base;
    int64_t stride;
};

static struct matrix matrix(const struct call *c, const int64_t *field) {
    struct matrix m = {(bf16 *)c->places[field[0]] + field[1], field[2]};
    return m;
}

static void share_of(int64_t items, int thread, int threads, int64_t *first, int64_t *end) {
    *first = items * thread / threads;
    *end = items * (thread + 1) / threads;
}

/* -- numbers ------------------------------------------------------------------------------------------- */

INLINE __m512 widen(__m256i half) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)); }

INLINE __m512 load16(const bf16 *from) { return widen(_mm256_loadu_si256((const __m256i *)from)); }

INLINE void store16(bf16 *to, __m512 value) { _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(value)); }

INLINE __mmask16 below(int64_t count) { return count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1); }

INLINE __m512 load_some(const bf16 *from, __mmask16 which) { return widen(_mm256_maskz_loadu_epi16(which, from)); }

INLINE void store_some(bf16 *to, __mmask16 which, __m512 value) {
    _mm256_mask_storeu_epi16(to, which, (__m256i)_mm512_cvtneps_pbh(value));
}

/* 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes' coefficients); relative error 2e-7. */
INLINE __m512 exp16(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-100.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    x = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    x = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), x);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(x, x), _mm512_add_ps(x, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

#define LOG2E 1.44269504f

/* 2^x: 2^n times a polynomial on [-1/2, 1/2] with 2^0 = 1 (least largest error); relative error 1e-7. Nothing for
 * minus infinity, no number for none. */
INLINE __m512 exp2_16(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);
    __m512 n = _mm512_roundscale_ps(x, 0), f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.326472423e-3f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.671513244e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.550733757e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402224207e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931469776e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* -- products ------------------------------------------------------------------------------------------
 * Weights lie in panels of PANEL outputs: for each pair of inputs, the pair's weights of all the outputs. A
 * tile of up to TILE rows multiplies a whole panel in registers, which reads weights once and in order. */

#define PANEL 32
#define TILE 12

/* Where memory is asked for `step` bytes ahead at each step of a product. */
struct ahead {
    const char *from;
    int64_t step;
};

#define NOTHING_AHEAD (struct ahead){NULL, 0}

/* A panel's first tile would wait for its weights, and its other tiles leave the memory idle: so a panel's tiles,
 * up to the first ASKING, ask for the next panel, each for its share. A tile alone asks for what it reads next. */
#define ASKING 4

static struct ahead ahead_of(int64_t tile, int64_t tiles, int64_t steps, int64_t step_bytes, const char *next) {
    int64_t asking = tiles < ASKING ? tiles : ASKING, step = (step_bytes + asking - 1) / asking;
    if (tiles == 1 || tile >= ASKING) return NOTHING_AHEAD;
    return (struct ahead){next + tile * steps * step, step};
}

/* acc [rows][2] += x [rows, 2 * pairs] times a panel. */
INLINE void multiply(
    const bf16 *x, int64_t stride, const bf16 *panel, int64_t pairs, const int rows, __m512 (*acc)[2], struct ahead ahead
) {
    for (int64_t k = 0; k < pairs; k++, panel += 2 * PANEL) {
        __m512bh low = (__m512bh)_mm512_loadu_si512(panel);
        __m512bh high = (__m512bh)_mm512_loadu_si512(panel + PANEL);
        if (ahead.step) _mm_prefetch(ahead.from + k * ahead.step, _MM_HINT_T1);
        else _mm_prefetch((const char *)(panel + 16 * 2 * PANEL), _MM_HINT_T0),
             _mm_prefetch((const char *)(panel + 16 * 2 * PANEL + PANEL), _MM_HINT_T0);
        UNROLL for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, x + r * stride + 2 * k, 4);
            __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
            acc[r][0] = _mm512_dpbf16_ps(acc[r][0], both, low);
            acc[r][1] = _mm512_dpbf16_ps(acc[r][1], both, high);
        }
    }
}

struct product {
    struct matrix x;
    void *out;
    int64_t out_stride;
    const void *weight;  /* [panels, pairs, PANEL, 2], or panels of 8 bits */
    const float *bias;   /* [outputs] or NULL */
    int64_t pairs, outputs, rows, wide; /* pairs: groups, of 8 bits; wide: out is float32 */
};

INLINE void store_panel(const struct product *p, int64_t row, int64_t first, const int rows, __m512 (*acc)[2]) {
    UNROLL for (int half = 0; half < 2; half++) {
        int64_t column = first + 16 * half;
        if (column >= p->outputs) return;
        __mmask16 which = below(p->outputs - column);
        __m512 bias = p->bias ? _mm512_maskz_loadu_ps(which, p->bias + column) : _mm512_setzero_ps();
        UNROLL for (int r = 0; r < rows; r++) {
            __m512 sum = _mm512_add_ps(acc[r][half], bias);
            int64_t place = (row + r) * p->out_stride + column;
            if (p->wide) _mm512_mask_storeu_ps((float *)p->out + place, which, sum);
            else store_some((bf16 *)p->out + place, which, sum);
        }
    }
}

INLINE void product_tile(const struct product *p, int64_t row, int64_t panel, const int rows, struct ahead ahead) {
    __m512 acc[TILE][2];
    UNROLL for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
    const bf16 *weight = (const bf16 *)p->weight + panel * p->pairs * 2 * PANEL;
    multiply(p->x.base + row * p->x.stride, p->x.stride, weight, p->pairs, rows, acc, ahead);
    store_panel(p, row, panel * PANEL, rows, acc);
}

#define EACH_SMALL_TILE(call) \
    case 1: call(1); break; \
    case 2: call(2); break; \
    case 3: call(3); break; \
    case 4: call(4); break; \
    case 5: call(5); break

#define EACH_TILE(call) \
    switch (rows) { \
    EACH_SMALL_TILE(call); \
    case 6: call(6); break; \
    case 7: call(7); break; \
    case 8: call(8); break; \
    case 9: call(9); break; \
    case 10: call(10); break; \
    case 11: call(11); break; \
    default: call(12); \
    }

WIDE static void product_panel(const struct product *p, int64_t panel, int64_t next) {
    const char *next_weight = (const char *)((const bf16 *)p->weight + next * p->pairs * 2 * PANEL);
    int64_t tiles = (p->rows + TILE - 1) / TILE;
    for (int64_t tile = 0; tile < tiles; tile++) {
        int64_t row = p->rows * tile / tiles;
        int rows = (int)(p->rows * (tile + 1) / tiles - row);
        struct ahead ahead = ahead_of(tile, tiles, p->pairs, 2 * PANEL * sizeof(bf16), next_weight);
#define CALL(n) product_tile(p, row, panel, n, ahead)
        EACH_TILE(CALL)
#undef CALL
    }
}

/* -- products in 8 bits --------------------------------------------------------------------------------
 * Inputs and weights come in groups of GROUP inputs that have a scale each. A row of inputs is its bytes, then
 * its groups' scales (float32), then -128 times the sum of each group's bytes (int32). A panel's group is, for
 * each four inputs, those of all the outputs, and then the outputs' scales. Weights are stored 128 too high,
 * for vpdpbusd multiplies unsigned by signed bytes: what that adds is what a group's sums begin below 0 with. */

#define GROUP 64
#define BLOCK8 (GROUP * PANEL + 4 * PANEL)
#define TILE8 6

struct row8 {
    const int8_t *bytes;
    const float *scales;
    const int32_t *starts;
};

INLINE8 void product8_tile(const struct product *p, int64_t row, int64_t panel, const int rows, struct ahead ahead) {
    int64_t groups = p->pairs;
    __m512 sums[TILE8][2];
    struct row8 x[TILE8];
    UNROLL for (int r = 0; r < rows; r++) {
        sums[r][0] = sums[r][1] = _mm512_setzero_ps();
        x[r].bytes = (const int8_t *)(p->x.base + (row + r) * p->x.stride);
        x[r].scales = (const float *)(x[r].bytes + groups * GROUP);
        x[r].starts = (const int32_t *)(x[r].scales + groups);
    }
    const char *block = (const char *)p->weight + panel * groups * BLOCK8;
    for (int64_t group = 0; group < groups; group++, block += BLOCK8) {
        __m512i acc[TILE8][2];
        UNROLL for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = _mm512_set1_epi32(x[r].starts[group]);
        UNROLL for (int four = 0; four < GROUP / 4; four++) {
            const char *at = block + four * 4 * PANEL;
            __m512i low = _mm512_loadu_si512(at), high = _mm512_loadu_si512(at + 64);
            if (ahead.step) _mm_prefetch(ahead.from + (group * (GROUP / 4) + four) * ahead.step, _MM_HINT_T1);
            else _mm_prefetch(at + BLOCK8, _MM_HINT_T0), _mm_prefetch(at + BLOCK8 + 64, _MM_HINT_T0);
            UNROLL for (int r = 0; r < rows; r++) {
                int32_t bytes;
                memcpy(&bytes, x[r].bytes + group * GROUP + 4 * four, 4);
                __m512i all = _mm512_set1_epi32(bytes);
                acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], low, all);
                acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], high, all);
            }
        }
        const float *scales = (const float *)(block + GROUP * PANEL);
        UNROLL for (int half = 0; half < 2; half++) {
            __m512 scale = _mm512_loadu_ps(scales + 16 * half);
            UNROLL for (int r = 0; r < rows; r++) {
                __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x[r].scales[group]));
                sums[r][half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][half]), both, sums[r][half]);
            }
        }
    }
    store_panel(p, row, panel * PANEL, rows, sums);
}

WIDE8 static void product8_panel(const struct product *p, int64_t panel, int64_t next) {
    const char *next_weight = (const char *)p->weight + next * p->pairs * BLOCK8;
    int64_t tiles = (p->rows + TILE8 - 1) / TILE8;
    for (int64_t tile = 0; tile < tiles; tile++) {
        int64_t row = p->rows * tile / tiles;
        int rows = (int)(p->rows * (tile + 1) / tiles - row);
        struct ahead ahead = ahead_of(tile, tiles, p->pairs * (GROUP / 4), BLOCK8 / (GROUP / 4), next_weight);
#define CALL(n) product8_tile(p, row, panel, n, ahead)
        switch (rows) {
            EACH_SMALL_TILE(CALL);
        default: CALL(6);
        }
#undef CALL
    }
}

/* Fields: x, out, width. */
WIDE static void quantize_rows(const struct call *c, const struct op *op, int64_t first, int64_t end) {
    const int64_t *f = op->field;
    struct matrix x = matrix(c, f), out = matrix(c, f + 3);
    int64_t groups = f[6] / GROUP;
    for (int64_t row = first; row < end; row++) {
        int8_t *bytes = (int8_t *)(out.base + row * out.stride);
        float *scales = (float *)(bytes + f[6]);
        int32_t *starts = (int32_t *)(scales + groups);
        for (int64_t group = 0; group < groups; group++) {
            __m512 v[GROUP / 16], most = _mm512_setzero_ps();
            __m512i sum = _mm512_setzero_si512();
            __mmask16 odd = 0;
            UNROLL for (int i = 0; i < GROUP / 16; i++) {
                v[i] = load16(x.base + row * x.stride + group * GROUP + 16 * i);
                most = _mm512_max_ps(most, _mm512_abs_ps(v[i]));
                odd |= _mm512_cmp_ps_mask(v[i], v[i], _CMP_UNORD_Q);
            }
            float scale = odd ? NAN : _mm512_reduce_max_ps(most) / 127.0f;
            __m512 inverse = _mm512_set1_ps(scale > 0 ? 1.0f / scale : 0.0f);
            UNROLL for (int i = 0; i < GROUP / 16; i++) {
                __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(v[i], inverse));
                sum = _mm512_add_epi32(sum, whole);
                _mm_storeu_si128((__m128i *)(bytes + group * GROUP + 16 * i), _mm512_cvtsepi32_epi8(whole));
            }
            scales[group] = scale;
            starts[group] = -128 * _mm512_reduce_add_epi32(sum);
        }
    }
}

static void linear(const struct call *c, const struct op *op, int64_t rows, struct team *team, atomic_long *next) {
    const int64_t *f = op->field;
    struct matrix out = matrix(c, f + 3);
    struct product p = {
        .x = matrix(c, f), .out = out.base, .out_stride = out.stride, .weight = (const void *)f[6],
        .bias = (const float *)f[7], .pairs = f[8], .outputs = f[9], .wide = f[10], .rows = rows,
    };
    int64_t panels = (p.outputs + PANEL - 1) / PANEL;
    int64_t run = panels / (8 * team->size) > 0 ? panels / (8 * team->size) : 1;
    int64_t first = atomic_fetch_add_explicit(next, run, memory_order_relaxed);
    while (first < panels) {
        int64_t then = atomic_fetch_add_explicit(next, run, memory_order_relaxed); /* early, to ask for its weights */
        for (int64_t panel = first; panel < first + run && panel < panels; panel++) {
            int64_t following = panel + 1 < first + run ? panel + 1 : then;
            if (op->kind == LINEAR8) product8_panel(&p, panel, following);
            else product_panel(&p, panel, following);
        }
        first = then;
    }
}

/* -- what a row needs of itself alone ------------------------------------------------------------------ */

/* Fields: x, residual or a place of -1, out, total, weight (float32), width, parts of a row. Number: eps. */
WIDE static void norm_rows(const struct call *c, const struct op *op, int64_t first, int64_t end) {
    const int64_t *f = op->field;
    int adds = f[3] >= 0;
    struct matrix x = matrix(c, f), out = matrix(c, f + 6), residual = x, total = x;
    if (adds) residual = matrix(c, f + 3), total = matrix(c, f + 9);
    const float *weight = (const float *)f[12];
    int64_t width = f[13], parts = f[14];
    for (int64_t row = first; row < end; row++)
        for (int64_t part = 0; part < parts; part++) {
            bf16 *from = x.base + row * x.stride + part * width;
            if (adds) {
                const bf16 *other = residual.base + row * residual.stride + part * width;
                bf16 *to = total.base + row * total.stride + part * width;
                for (int64_t i = 0; i < width; i += 16) {
                    __mmask16 which = below(width - i);
                    store_some(to + i, which, _mm512_add_ps(load_some(from + i, which), load_some(other + i, which)));
                }
                from = to;
            }
            __m512 squares = _mm512_setzero_ps();
            for (int64_t i = 0; i < width; i += 16) {
                __m512 v = load_some(from + i, below(width - i));
                squares = _mm512_fmadd_ps(v, v, squares);
            }
            float factor = 1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)width + (float)op->number[0]);
            bf16 *to = out.base + row * out.stride + part * width;
            for (int64_t i = 0; i < width; i += 16) {
                __mmask16 which = below(width - i);
                __m512 v = _mm512_mul_ps(load_some(from + i, which), _mm512_set1_ps(factor));
                store_some(to + i, which, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(which, weight + i)));
            }
        }
}

/* Fields: x, cos, sin, out, heads, dim. Halves belong together, as in GPT-NeoX (Su et al. 2021). */
WIDE static void rotate_rows(const struct call *c, const struct op *op, int64_t first, int64_t end) {
    const int64_t *f = op->field;
    struct matrix x = matrix(c, f), cosines = matrix(c, f + 3), sines = matrix(c, f + 6), out = matrix(c, f + 9);
    int64_t heads = f[12], dim = f[13], half = dim / 2;
    for (int64_t row = first; row < end; row++) {
        const bf16 *cos = cosines.base + row * cosines.stride, *sin = sines.base + row * sines.stride;
        for (int64_t head = 0; head < heads; head++) {
            const bf16 *from = x.base + row * x.stride + head * dim;
            bf16 *to = out.base + row * out.stride + head * dim;
            for (int64_t i = 0; i < half; i += 16) {
                __mmask16 which = below(half - i);
                __m512 a = load_some(from + i, which), b = load_some(from + half + i, which);
                __m512 left = _mm512_mul_ps(b, load_some(sin + i, which));
                __m512 right = _mm512_mul_ps(a, load_some(sin + half + i, which));
                store_some(to + i, which, _mm512_fmsub_ps(a, load_some(cos + i, which), left));
                store_some(to + half + i, which, _mm512_fmadd_ps(b, load_some(cos + half + i, which), right));
            }
        }
    }
}

/* Fields: gate, up, out, width, activation. */
enum activation { SILU, GELU_TANH };

INLINE __m512 activated(__m512 x, int64_t activation) {
    /* gelu by tanh (Hendrycks and Gimpel 2016): x times the logistic function of 2 * sqrt(2/pi) * (x + ...). */
    __m512 t = x;
    if (activation == GELU_TANH) {
        __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
        t = _mm512_mul_ps(_mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x), _mm512_set1_ps(1.5957691216f));
    }
    __m512 e = exp16(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(t)));
    __mmask16 negative = _mm512_cmp_ps_mask(t, _mm512_setzero_ps(), _CMP_LT_OQ);
    __m512 top = _mm512_mask_blend_ps(negative, _mm512_set1_ps(1.0f), e);
    return _mm512_mul_ps(x, _mm512_div_ps(top, _mm512_add_ps(e, _mm512_set1_ps(1.0f))));
}

WIDE static void gate_rows(const struct call *c, const struct op *op, int64_t first, int64_t end) {
    const int64_t *f = op->field;
    struct matrix gate = matrix(c, f), up = matrix(c, f + 3), out = matrix(c, f + 6);
    int64_t width = f[9];
    for (int64_t row = first; row < end; row++)
        for (int64_t i = 0; i < width; i += 16) {
            __mmask16 which = below(width - i);
            __m512 v = activated(load_some(gate.base + row * gate.stride + i, which), f[10]);
            v = _mm512_mul_ps(v, load_some(up.base + row * up.stride + i, which));
            store_some(out.base + row * out.stride + i, which, v);
        }
}

/* Fields: left, right, out, width. */
WIDE static void add_rows(const struct call *c, const struct op *op, int64_t first, int64_t end) {
    const int64_t *f = op->field;
    struct matrix left = matrix(c, f), right = matrix(c, f + 3), out = matrix(c, f + 6);
    for (int64_t row = first; row < end; row++)
        for (int64_t i = 0; i < f[9]; i += 16) {
            __mmask16 which = below(f[9] - i);
            __m512 a = load_some(left.base + row * left.stride + i, which);
            store_some(out.base + row * out.stride + i, which, _mm512_add_ps(a, load_some(right.base + row * right.stride + i, which)));
        }
}

/* Fields: x, out, width. Rows of x by number. */
static void pick_rows(const struct call *c, const struct op *op, int64_t first, int64_t end) {
    const int64_t *f = op->field;
    struct matrix x = matrix(c, f), out = matrix(c, f + 3);
    for (int64_t row = first; row < end; row++)
        memcpy(out.base + row * out.stride, x.base + c->row_ids[row] * x.stride, f[6] * sizeof(bf16));
}

/* -- attention ------------------------------------------------------------------------------------------
 * Fields: query, key, value, out, cached keys, cached values [slots, kv_heads, max_length, dim | value_dim],
 * sinks (float32, [heads]) or 0, heads, kv_heads, dim, value_dim, max_length, window or 0. Numbers: scale,
 * softcap or 0. Keys are taken in blocks that begin at multiples of BLOCK8, with running maxima and sums
 * (Milakov and Gimelshein 2018). */

#define BLOCK 64
#define PART 4        /* blocks of a decode row that one thread takes at once */
#define MOST_DIM 256

struct attention {
    struct matrix query, key, value, out;
    bf16 *keys, *values;
    const float *sinks;
    int64_t heads, kv_heads, dim, value_dim, max_length, window, group;
    float scale, softcap;
};

static struct attention attention(const struct call *c, const struct op *op) {
    const int64_t *f = op->field;
    struct attention a = {
        .query = matrix(c, f), .key = matrix(c, f + 3), .value = matrix(c, f + 6), .out = matrix(c, f + 9),
        .keys = (bf16 *)f[12], .values = (bf16 *)f[13], .sinks = (const float *)f[14], .heads = f[15],
        .kv_heads = f[16], .dim = f[17], .value_dim = f[18], .max_length = f[19], .window = f[20],
        .group = f[15] / f[16], .scale = (float)op->number[0], .softcap = (float)op->number[1],
    };
    return a;
}

static void cache_rows(const struct call *c, const struct op *op, int64_t first, int64_t end) {
    struct attention a = attention(c, op);
    for (int64_t row = first; row < end; row++)
        for (int64_t head = 0; head < a.kv_heads; head++) {
            int64_t place = (c->slots[row] * a.kv_heads + head) * a.max_length + c->positions[row];
            memcpy(a.keys + place * a.dim, a.key.base + row * a.key.stride + head * a.dim, a.dim * sizeof(bf16));
            memcpy(a.values + place * a.value_dim, a.value.base + row * a.value.stride + head * a.value_dim, a.value_dim * sizeof(bf16));
        }
}

/* A row's first visible key, from its position. */
static int64_t first_seen(const struct attention *a, int64_t position) {
    return a->window && position >= a->window ? position - a->window + 1 : 0;
}

/* Four registers to four sums, or to their four highest numbers. */
#define ACROSS(name, op) \
    INLINE __m128 name(__m512 a, __m512 b, __m512 c, __m512 d) { \
        __m512 ab = _mm512_##op##_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); \
        __m512 cd = _mm512_##op##_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)); \
        __m512 all = _mm512_##op##_ps( \
            _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))), \
            _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))) \
        ); \
        __m256 half = _mm256_##op##_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1)); \
        return _mm_##op##_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)); \
    }

ACROSS(sums_of, add)
ACROSS(highest_of, max)

/* Asks for memory ahead of its use: a row's keys and values lie in pieces too short for the processor to
 * foresee. A few lines at a time, among other work, since only so many can be on their way. */
INLINE void fetch(const bf16 *from, int64_t count) {
    for (int64_t i = 0; i < count; i += 32) _mm_prefetch((const char *)(from + i), _MM_HINT_T0);
}

/* Scores [heads, BLOCK] of `count` keys; unscaled. Meanwhile their values are fetched. */
INLINE void block_scores(
    const bf16 *query, const bf16 *keys, const bf16 *values, int64_t count, int64_t dim, int64_t value_dim,
    const int heads, float *scores
) {
    for (int64_t key = 0; key < count; key += 4) {
        fetch(values + key * value_dim, 4 * value_dim);
        __m512 acc[4][4];
        UNROLL for (int g = 0; g < heads; g++)
            UNROLL for (int k = 0; k < 4; k++) acc[g][k] = _mm512_setzero_ps();
        for (int64_t i = 0; i < dim; i += 32) {
            UNROLL for (int k = 0; k < 4; k++) {
                int64_t which = key + k < count ? key + k : count - 1;
                __m512bh numbers = (__m512bh)_mm512_loadu_si512(keys + which * dim + i);
                UNROLL for (int g = 0; g < heads; g++)
                    acc[g][k] = _mm512_dpbf16_ps(acc[g][k], (__m512bh)_mm512_loadu_si512(query + g * dim + i), numbers);
            }
        }
        UNROLL for (int g = 0; g < heads; g++)
            _mm_storeu_ps(scores + g * BLOCK + key, sums_of(acc[g][0], acc[g][1], acc[g][2], acc[g][3]));
    }
}

/* Which of a block's keys a row sees: [first, end). */
INLINE void visible(int64_t first, int64_t end, __mmask16 *seen) {
    UNROLL for (int i = 0; i < BLOCK / 16; i++) {
        seen[i] = below(end - 16 * i > 0 ? end - 16 * i : 0);
        if (first > 16 * i) seen[i] &= ~below(first - 16 * i);
    }
}

/* Scores [rows, BLOCK] of up to four rows into weights in bfloat16, with the rows' highest score so far (times
 * log2 e) and the sum of all weights, `stride` apart, and the factor for what was summed before. `seen`: what each
 * row sees, [rows, BLOCK / 16], or NULL for all of it. A row's numbers do not depend on its neighbours. */
INLINE void weigh(
    const float *scores, const __mmask16 *seen, const int rows, const struct attention *a, float *maximum, float *total,
    int64_t stride, bf16 *weights, float *shrink
) {
    const __m512 nothing = _mm512_set1_ps(-INFINITY);
    const __m512 factor = _mm512_set1_ps(a->softcap ? a->scale / a->softcap : a->scale * LOG2E);
    __m512 part[4][BLOCK / 16], highest[4], sums[4];
    float before[4], most[4], factors[4];
    UNROLL for (int r = 0; r < 4; r++) {
        highest[r] = nothing;
        sums[r] = _mm512_setzero_ps();
        before[r] = r < rows ? maximum[r * stride] : 0;
        if (r >= rows) continue;
        UNROLL for (int i = 0; i < BLOCK / 16; i++) {
            __m512 v = _mm512_mul_ps(_mm512_loadu_ps(scores + r * BLOCK + 16 * i), factor);
            if (a->softcap) {
                float each[16];
                _mm512_storeu_ps(each, v);
                for (int j = 0; j < 16; j++) each[j] = a->softcap * LOG2E * tanhf(each[j]);
                v = _mm512_loadu_ps(each);
            }
            part[r][i] = seen ? _mm512_mask_blend_ps(seen[r * (BLOCK / 16) + i], nothing, v) : v;
            highest[r] = _mm512_max_ps(highest[r], part[r][i]);
        }
    }
    __m128 old = _mm_loadu_ps(before), new = _mm_max_ps(old, highest_of(highest[0], highest[1], highest[2], highest[3]));
    _mm_storeu_ps(most, new);
    /* Where nothing is visible yet, weights are nothing and so is what they are taken from. */
    __m128 level = _mm_max_ps(_mm_set1_ps(-1e38f), new);
    _mm_storeu_ps(factors, _mm512_castps512_ps128(exp2_16(_mm512_castps128_ps512(_mm_sub_ps(old, level)))));
    UNROLL for (int r = 0; r < rows; r++) {
        __m512 from = _mm512_set1_ps(most[r] < -1e38f ? -1e38f : most[r]);
        UNROLL for (int i = 0; i < BLOCK / 16; i++) {
            __m512 e = exp2_16(_mm512_sub_ps(part[r][i], from));
            sums[r] = _mm512_add_ps(sums[r], e);
            store16(weights + r * BLOCK + 16 * i, e);
        }
    }
    float added[4];
    _mm_storeu_ps(added, sums_of(sums[0], sums[1], sums[2], sums[3]));
    UNROLL for (int r = 0; r < rows; r++) {
        shrink[r] = factors[r];
        total[r * stride] = total[r * stride] * factors[r] + added[r];
        maximum[r * stride] = most[r];
    }
}

/* state [heads, value_dim] = state * shrink + weights [heads, BLOCK] x values [count, value_dim]. Within 32
 * columns, those with bit 2 unset come first: see `in_order`. */
INLINE void block_values(
    const bf16 *weights, const float *shrink, const bf16 *values, const bf16 *next_keys, int64_t count,
    int64_t key_dim, int64_t dim, const int heads, float *state, int64_t state_stride
) {
    for (int64_t i = 0; i < dim; i += 32) {
        __m512 acc[4][2];
        UNROLL for (int g = 0; g < heads; g++)
            UNROLL for (int h = 0; h < 2; h++)
                acc[g][h] = _mm512_mul_ps(_mm512_loadu_ps(state + g * state_stride + i + 16 * h), _mm512_set1_ps(shrink[g]));
        for (int64_t key = 0; key < count; key += 2) {
            if (i == 0) fetch(next_keys + key * key_dim, 2 * key_dim);
            __m512i one = _mm512_loadu_si512(values + key * dim + i);
            __m512i two = key + 1 < count ? _mm512_loadu_si512(values + (key + 1) * dim + i) : one;
            __m512bh low = (__m512bh)_mm512_unpacklo_epi16(one, two), high = (__m512bh)_mm512_unpackhi_epi16(one, two);
            UNROLL for (int g = 0; g < heads; g++) {
                int32_t pair;
                memcpy(&pair, weights + g * BLOCK + key, 4);
                __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
                acc[g][0] = _mm512_dpbf16_ps(acc[g][0], both, low);
                acc[g][1] = _mm512_dpbf16_ps(acc[g][1], both, high);
            }
        }
        UNROLL for (int g = 0; g < heads; g++)
            UNROLL for (int h = 0; h < 2; h++) _mm512_storeu_ps(state + g * state_stride + i + 16 * h, acc[g][h]);
    }
}

INLINE void decode_heads(
    const struct attention *a, const bf16 *query, const bf16 *keys, const bf16 *values, int64_t first, int64_t begin,
    int64_t end, const int heads, float *state
) {
    float scores[4 * BLOCK];
    bf16 weights[4 * BLOCK];
    float shrink[4];
    int64_t stride = a->value_dim + 2;
    for (int64_t block = first; block < end; block += BLOCK) {
        int64_t count = end - block < BLOCK ? end - block : BLOCK;
        const bf16 *value = values + block * a->value_dim;
        block_scores(query, keys + block * a->dim, value, count, a->dim, a->value_dim, heads, scores);
        __mmask16 seen[4][BLOCK / 16];
        visible(begin - block, count, seen[0]);
        UNROLL for (int g = 1; g < heads; g++) memcpy(seen[g], seen[0], sizeof(seen[0]));
        float *highest = state + a->value_dim;
        weigh(scores, begin <= block && count == BLOCK ? NULL : seen[0], heads, a, highest, highest + 1, stride, weights, shrink);
        block_values(weights, shrink, value, keys + (block + BLOCK) * a->dim, count, a->dim, a->value_dim, heads, state, stride);
    }
}

/* One part of a decode row's keys, for the query heads that share a key head. */
struct part {
    int64_t row, head, first, end; /* keys [first, end) */
    const bf16 *keys, *values;     /* of position 0 */
};

static struct part part_of(const struct call *c, const struct attention *a, int64_t item, int64_t most_parts) {
    struct part p = {.row = item / most_parts / a->kv_heads, .head = item / most_parts % a->kv_heads};
    int64_t position = c->positions[p.row], begin = first_seen(a, position);
    int64_t cached = (c->slots[p.row] * a->kv_heads + p.head) * a->max_length;
    p.first = begin - begin % BLOCK + item % most_parts * PART * BLOCK;
    p.end = position + 1 > p.first + PART * BLOCK ? p.first + PART * BLOCK : position + 1;
    p.keys = a->keys + cached * a->dim;
    p.values = a->values + cached * a->value_dim;
    return p;
}

WIDE static void decode_part(const struct call *c, const struct attention *a, const struct part *p, float *state) {
    int64_t begin = first_seen(a, c->positions[p->row]), stride = a->value_dim + 2;
    if (p->first >= p->end) return;
    const bf16 *query = a->query.base + p->row * a->query.stride + p->head * a->group * a->dim;
    for (int64_t g = 0; g < a->group; g++) {
        memset(state + g * stride, 0, a->value_dim * sizeof(float));
        state[g * stride + a->value_dim] = -INFINITY;
        state[g * stride + a->value_dim + 1] = 0;
    }
    for (int64_t g = 0; g < a->group; g += 4) {
        const bf16 *q = query + g * a->dim;
        float *s = state + g * stride;
        switch (a->group - g) {
        case 1: decode_heads(a, q, p->keys, p->values, p->first, begin, p->end, 1, s); break;
        case 2: decode_heads(a, q, p->keys, p->values, p->first, begin, p->end, 2, s); break;
        case 3: decode_heads(a, q, p->keys, p->values, p->first, begin, p->end, 3, s); break;
        default: decode_heads(a, q, p->keys, p->values, p->first, begin, p->end, 4, s);
        }
    }
}

/* Columns [32] as block_values keeps them, in their order. */
INLINE void in_order(__m512 *low, __m512 *high) {
    const __m512i first = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    __m512 front = _mm512_permutex2var_ps(*low, first, *high);
    *high = _mm512_permutex2var_ps(*low, _mm512_add_epi32(first, _mm512_set1_epi32(8)), *high);
    *low = front;
}

/* A row's parts of one key head, [parts, group, value_dim + 2], into its output. */
WIDE static void join_parts(const struct attention *a, int64_t row, int64_t head, int64_t parts, const float *state) {
    int64_t stride = a->value_dim + 2;
    for (int64_t g = 0; g < a->group; g++) {
        int64_t query_head = head * a->group + g;
        float sink = a->sinks ? a->sinks[query_head] * LOG2E : -INFINITY, highest = sink, shares[parts];
        for (int64_t p = 0; p < parts; p++) {
            float maximum = state[(p * a->group + g) * stride + a->value_dim];
            if (maximum > highest) highest = maximum;
        }
        float total = a->sinks ? exp2f(sink - highest) : 0;
        for (int64_t p = 0; p < parts; p++) {
            const float *s = state + (p * a->group + g) * stride;
            shares[p] = exp2f(s[a->value_dim] - highest);
            total += s[a->value_dim + 1] * shares[p];
        }
        bf16 *out = a->out.base + row * a->out.stride + query_head * a->value_dim;
        for (int64_t i = 0; i < a->value_dim; i += 32) {
            __m512 low = _mm512_setzero_ps(), high = low;
            for (int64_t p = 0; p < parts; p++) {
                const float *s = state + (p * a->group + g) * stride + i;
                __m512 share = _mm512_set1_ps(shares[p] / total);
                low = _mm512_fmadd_ps(share, _mm512_loadu_ps(s), low);
                high = _mm512_fmadd_ps(share, _mm512_loadu_ps(s + 16), high);
            }
            in_order(&low, &high);
            store16(out + i, low);
            store16(out + i + 16, high);
        }
    }
}

static int64_t parts_of(const struct attention *a, int64_t position) {
    int64_t begin = first_seen(a, position);
    return (position + 1 - (begin - begin % BLOCK) + PART * BLOCK - 1) / (PART * BLOCK);
}

/* -- attention of prompt chunks: tiles of queries against packed blocks of keys ------------------------- */

#define QUERIES 192 /* rows of a tile's queries, one for each token and query head of a key head */

struct scratch {
    bf16 query[QUERIES * MOST_DIM];
    bf16 keys[BLOCK * MOST_DIM], values[BLOCK * MOST_DIM]; /* in panels, as weights */
    float scores[QUERIES * BLOCK];
    bf16 weights[QUERIES * BLOCK];
    float state[QUERIES * MOST_DIM], maximum[QUERIES], total[QUERIES], shrink[QUERIES];
};

/* Sixteen rows of sixteen 32-bit numbers, to columns. */
INLINE void transpose16(__m512i *r) {
    __m512i t[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    /* r[4i + j] holds columns j, 4 + j, 8 + j and 12 + j of rows 4i to 4i + 3. */
    UNROLL for (int j = 0; j < 4; j++) {
        __m512i even = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), odd = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
        __m512i even2 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88), odd2 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
        t[j] = _mm512_shuffle_i32x4(even, even2, 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
        t[8 + j] = _mm512_shuffle_i32x4(even, even2, 0xdd);
        t[12 + j] = _mm512_shuffle_i32x4(odd, odd2, 0xdd);
    }
    UNROLL for (int i = 0; i < 16; i++) r[i] = t[i];
}

/* Keys [count, dim] as panels of a product with them: each key is an output. */
WIDE static void pack_keys(const bf16 *keys, int64_t count, int64_t dim, bf16 *out) {
    for (int64_t key = 0; key < BLOCK; key += 16) {
        bf16 *panel = out + key / PANEL * PANEL * dim + key % PANEL * 2;
        for (int64_t pair = 0; pair < dim / 2; pair += 16) {
            __m512i rows[16];
            UNROLL for (int i = 0; i < 16; i++)
                rows[i] = key + i < count ? _mm512_loadu_si512(keys + (key + i) * dim + 2 * pair) : _mm512_setzero_si512();
            transpose16(rows);
            UNROLL for (int i = 0; i < 16; i++) _mm512_storeu_si512(panel + (pair + i) * 2 * PANEL, rows[i]);
        }
    }
}

/* Values [count, dim] as panels: each column is an output, keys are inputs. */
WIDE static void pack_values(const bf16 *values, int64_t count, int64_t dim, bf16 *out) {
    for (int64_t first = 0; first < dim; first += PANEL)
        for (int64_t key = 0; key < BLOCK; key += 2) {
            __m512i one = key < count ? _mm512_loadu_si512(values + key * dim + first) : _mm512_setzero_si512();
            __m512i two = key + 1 < count ? _mm512_loadu_si512(values + (key + 1) * dim + first) : _mm512_setzero_si512();
            bf16 *to = out + first * BLOCK + key * PANEL;
            const __m512i low = _mm512_set_epi16(
                47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0
            );
            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(one, low, two));
            _mm512_storeu_si512(to + PANEL, _mm512_permutex2var_epi16(one, _mm512_add_epi16(low, _mm512_set1_epi16(16)), two));
        }
}

/* out [rows, PANEL] (stride) = out * shrink + x [rows, 2 * pairs] times a panel; without shrink, = the product. */
INLINE void scaled_product(
    const bf16 *x, int64_t stride, const bf16 *panel, int64_t pairs, const int rows, float *out, int64_t out_stride, const float *shrink
) {
    __m512 acc[TILE][2];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < 2; h++)
            acc[r][h] = shrink ? _mm512_mul_ps(_mm512_loadu_ps(out + r * out_stride + 16 * h), _mm512_set1_ps(shrink[r])) : _mm512_setzero_ps();
    multiply(x, stride, panel, pairs, rows, acc, NOTHING_AHEAD);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < 2; h++) _mm512_storeu_ps(out + r * out_stride + 16 * h, acc[r][h]);
}

WIDE static void scaled_products(
    const bf16 *x, int64_t stride, const bf16 *panels, int64_t pairs, int64_t width, int64_t all, float *out, int64_t out_stride, const float *shrink
) {
    for (int64_t panel = 0; panel < width; panel += PANEL)
        for (int64_t row = 0; row < all; row += TILE) {
            int rows = all - row < TILE ? (int)(all - row) : TILE;
            const bf16 *p = panels + panel * 2 * pairs;
            const float *s = shrink ? shrink + row : NULL;
#define CALL(n) scaled_product(x + row * stride, stride, p, pairs, n, out + row * out_stride + panel, out_stride, s)
            EACH_TILE(CALL)
#undef CALL
        }
}

/* Up to four rows of a tile, from `row` on. */
WIDE static void weigh_tile(const struct attention *a, int64_t position, int64_t block, int64_t row, int64_t left, struct scratch *s) {
    int rows = left < 4 ? (int)left : 4, whole = 1;
    __mmask16 seen[4][BLOCK / 16];
    for (int r = 0; r < rows; r++) {
        int64_t own = position + (row + r) / a->group, first = first_seen(a, own) - block, end = own + 1 - block;
        visible(first, end, seen[r]);
        whole &= first <= 0 && end >= BLOCK;
    }
    const float *scores = s->scores + row * BLOCK;
    bf16 *weights = s->weights + row * BLOCK;
    float *maximum = s->maximum + row, *total = s->total + row, *shrink = s->shrink + row;
#define WEIGH(n) weigh(scores, whole ? NULL : seen[0], n, a, maximum, total, 1, weights, shrink)
    switch (rows) {
    case 1: WEIGH(1); break;
    case 2: WEIGH(2); break;
    case 3: WEIGH(3); break;
    default: WEIGH(4);
    }
#undef WEIGH
}

/* `count` tokens from `row` on, of one slot and with neighbouring positions, for one key head. */
WIDE static void attend_tile(const struct call *c, const struct attention *a, int64_t row, int64_t count, int64_t head, struct scratch *s) {
    int64_t rows = count * a->group, dim = a->dim, value_dim = a->value_dim, position = c->positions[row];
    int64_t cached = (c->slots[row] * a->kv_heads + head) * a->max_length, end = position + count;
    for (int64_t i = 0; i < count; i++)
        memcpy(
            s->query + i * a->group * dim, a->query.base + (row + i) * a->query.stride + head * a->group * dim,
            a->group * dim * sizeof(bf16)
        );
    memset(s->state, 0, rows * value_dim * sizeof(float));
    for (int64_t r = 0; r < rows; r++) s->maximum[r] = -INFINITY, s->total[r] = 0;
    int64_t begin = first_seen(a, position);
    for (int64_t block = begin - begin % BLOCK; block < end; block += BLOCK) {
        int64_t keys = end - block < BLOCK ? end - block : BLOCK;
        pack_keys(a->keys + (cached + block) * dim, keys, dim, s->keys);
        pack_values(a->values + (cached + block) * value_dim, keys, value_dim, s->values);
        scaled_products(s->query, dim, s->keys, dim / 2, BLOCK, rows, s->scores, BLOCK, NULL);
        for (int64_t r = 0; r < rows; r += 4) weigh_tile(a, position, block, r, rows - r, s);
        scaled_products(s->weights, BLOCK, s->values, BLOCK / 2, value_dim, rows, s->state, value_dim, s->shrink);
    }
    for (int64_t r = 0; r < rows; r++) {
        int64_t query_head = head * a->group + r % a->group;
        float scale = 1;
        if (a->sinks) {
            float sink = a->sinks[query_head] * LOG2E, highest = sink > s->maximum[r] ? sink : s->maximum[r];
            scale = exp2f(s->maximum[r] - highest);
            s->total[r] = s->total[r] * scale + exp2f(sink - highest);
        }
        bf16 *out = a->out.base + (row + r / a->group) * a->out.stride + query_head * value_dim;
        for (int64_t i = 0; i < value_dim; i += 16)
            store16(out + i, _mm512_mul_ps(_mm512_loadu_ps(s->state + r * value_dim + i), _mm512_set1_ps(scale / s->total[r])));
    }
}

/* -- a call ---------------------------------------------------------------------------------------------- */

/* What threads keep for themselves while a call lasts. */
struct workspace {
    float *parts;      /* [decodes, kv_heads, parts, group, value_dim + 2] of the largest layer */
    int64_t most_parts;
    struct scratch *scratch; /* one a thread, where there are chunks */
};

/* Of a chunk of `length`: as many as fit, but so few that every thread has several tiles. A token's numbers do
 * not depend on its tile. */
static int64_t tokens_of_tile(const struct attention *a, int64_t length, int threads) {
    int64_t most = QUERIES / a->group > 0 ? QUERIES / a->group : 1, least = 2 * TILE / a->group > 0 ? 2 * TILE / a->group : 1;
    int64_t tiles = (4 * threads + a->kv_heads - 1) / a->kv_heads, tile = (length + tiles - 1) / tiles;
    if (tile < least) tile = least;
    return tile < most ? tile : most;
}

/* A tile of a chunk, for one key head. */
static void attend_item(const struct call *c, const struct attention *a, int64_t item, int threads, struct scratch *scratch) {
    for (int64_t i = 0; i < c->chunk_count; i++) {
        int64_t length = c->chunks[2 * i + 1], tile = tokens_of_tile(a, length, threads);
        int64_t items = (length + tile - 1) / tile * a->kv_heads;
        if (item < items) {
            int64_t first = item / a->kv_heads * tile;
            attend_tile(c, a, c->chunks[2 * i] + first, length - first < tile ? length - first : tile, item % a->kv_heads, scratch);
            return;
        }
        item -= items;
    }
}

static void attend(const struct call *c, const struct op *op, struct workspace *w, int thread, int threads, atomic_long *next) {
    struct attention a = attention(c, op);
    int64_t stride = a.group * (a.value_dim + 2), decode_items = c->decodes * a.kv_heads * w->most_parts;
    int64_t items = decode_items;
    for (int64_t i = 0; i < c->chunk_count; i++) {
        int64_t length = c->chunks[2 * i + 1], tile = tokens_of_tile(&a, length, threads);
        items += (length + tile - 1) / tile * a.kv_heads;
    }
    for (;;) {
        /* From the end: a chunk's last tile sees the most keys, and tiles take longer than decode rows. */
        int64_t item = items - 1 - atomic_fetch_add_explicit(next, 1, memory_order_relaxed);
        if (item < 0) return;
        if (item < decode_items) {
            struct part part = part_of(c, &a, item, w->most_parts);
            decode_part(c, &a, &part, w->parts + item * stride);
        } else attend_item(c, &a, item - decode_items, threads, w->scratch + thread);
    }
}

static void join_rows(const struct call *c, const struct op *op, struct workspace *w, int64_t first, int64_t end) {
    struct attention a = attention(c, op);
    int64_t stride = a.group * (a.value_dim + 2);
    for (int64_t row = first; row < end && row < c->decodes; row++)
        for (int64_t head = 0; head < a.kv_heads; head++)
            join_parts(&a, row, head, parts_of(&a, c->positions[row]), w->parts + (row * a.kv_heads + head) * w->most_parts * stride);
}

/* Operations that need nothing of other rows follow each other without a wait: a thread has the same rows in
 * each. */
static int needs_only_its_row(const struct op *op) {
    return op->kind == NORM || op->kind == ROTATE || op->kind == GATE || op->kind == ADD || op->kind == QUANTIZE;
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000 + now.tv_nsec;
}

static void run_thread(const struct call *c, struct workspace *w, struct team *team, int thread) {
    int turn = 0, apart = 0; /* apart: other threads may not see yet what this one wrote */
    for (int64_t i = 0; i < c->count; i++) {
        const struct op *op = c->ops + i;
        int64_t rows = op->of_rows ? c->rows : c->tokens, first, end;
        share_of(rows, thread, team->size, &first, &end);
        int local = needs_only_its_row(op);
        int64_t started = c->profile && thread == 0 ? nanoseconds() : 0;
        if (apart && !local && op->kind != ATTENTION) meet(team);
        apart = 1;
        switch (op->kind) {
        case NORM: norm_rows(c, op, first, end); break;
        case ROTATE: rotate_rows(c, op, first, end); break;
        case GATE: gate_rows(c, op, first, end); break;
        case ADD: add_rows(c, op, first, end); break;
        case QUANTIZE: quantize_rows(c, op, first, end); break;
        case ROWS:
            pick_rows(c, op, first, end);
            meet(team); /* what it read may be written over next */
            apart = 0;
            break;
        case LINEAR:
        case LINEAR8:
            linear(c, op, rows, team, &team->next[turn]);
            meet(team);
            if (thread == 0) atomic_store_explicit(&team->next[turn], 0, memory_order_relaxed);
            turn = !turn;
            apart = 0;
            break;
        case ATTENTION:
            cache_rows(c, op, first, end);
            meet(team);
            attend(c, op, w, thread, team->size, &team->next[turn]);
            meet(team);
            if (thread == 0) atomic_store_explicit(&team->next[turn], 0, memory_order_relaxed);
            turn = !turn;
            join_rows(c, op, w, first, end);
            break;
        }
        if (c->profile && thread == 0) c->profile[op->kind] += nanoseconds() - started;
    }
}

static int prepare(const struct call *c, int threads, struct workspace *w) {
    int64_t longest = 0, most = 0;
    w->most_parts = 0;
    w->parts = NULL;
    w->scratch = NULL;
    for (int64_t row = 0; row < c->decodes; row++)
        if (c->positions[row] > longest) longest = c->positions[row];
    for (int64_t i = 0; i < c->count; i++)
        if (c->ops[i].kind == ATTENTION) {
            struct attention a = attention(c, c->ops + i);
            int64_t parts = 0, size;
            for (int64_t row = 0; row < c->decodes; row++)
                if (parts_of(&a, c->positions[row]) > parts) parts = parts_of(&a, c->positions[row]);
            size = a.heads * (a.value_dim + 2);
            if (parts > w->most_parts) w->most_parts = parts;
            if (size > most) most = size;
        }
    if (c->decodes && most && !(w->parts = malloc(c->decodes * w->most_parts * most * sizeof(float)))) return 0;
    if (c->chunk_count && !(w->scratch = malloc(threads * sizeof(struct scratch)))) return 0;
    return 1;
}

static void run(const struct call *c, struct workspace *w, int threads) {
    struct team team = {.size = threads};
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
        team.size = omp_get_num_threads();
        run_thread(c, w, &team, omp_get_thread_num());
    }
}

/* -- what Python calls ------------------------------------------------------------------------------------ */

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

static PyObject *run_program(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t a[11];
    if (given != 12 || !PyBytes_Check(args[0])) return PyErr_Format(PyExc_TypeError, "bytes and 11 integers expected");
    if (!integers(args + 1, 11, 11, a)) return NULL;
    struct call c = {
        .ops = (void *)PyBytes_AS_STRING(args[0]), .count = PyBytes_GET_SIZE(args[0]) / (Py_ssize_t)sizeof(struct op),
        .places = (void *)a[0], .tokens = a[1], .rows = a[2], .decodes = a[3], .slots = (void *)a[4],
        .positions = (void *)a[5], .chunks = (void *)a[6], .chunk_count = a[7], .row_ids = (void *)a[8],
        .profile = (void *)a[10],
    };
    int threads = (int)a[9];
    struct workspace w;
    int prepared = prepare(&c, threads, &w);
    if (prepared) {
        Py_BEGIN_ALLOW_THREADS
        run(&c, &w, threads);
        Py_END_ALLOW_THREADS
    }
    free(w.parts);
    free(w.scratch);
    if (!prepared) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* weight [outputs, inputs] into panels: out, address; outputs, inputs. */
static PyObject *pack_weight(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t a[4];
    if (!integers(args, given, 4, a)) return NULL;
    const uint32_t *weight = (void *)a[0]; /* pairs of inputs, which stay together */
    uint32_t *out = (void *)a[1];
    int64_t outputs = a[2], pairs = a[3] / 2;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < outputs; first += PANEL)
        for (int64_t k = 0; k < pairs; k++)
            for (int64_t i = 0; i < PANEL; i++)
                out[first * pairs + k * PANEL + i] = first + i < outputs ? weight[(first + i) * pairs + k] : 0;
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *supported(PyObject *self, PyObject *ignored) {
    (void)self, (void)ignored;
    __builtin_cpu_init();
    return PyBool_FromLong(
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16")
    );
}

/* Whether it can multiply 8-bit integers too, given that it is supported at all. */
static PyObject *multiplies_bytes(PyObject *self, PyObject *ignored) {
    (void)self, (void)ignored;
    __builtin_cpu_init();
    return PyBool_FromLong(__builtin_cpu_supports("avx512vnni"));
}

static PyMethodDef methods[] = {
    {"run", (PyCFunction)(void (*)(void))run_program, METH_FASTCALL, NULL},
    {"pack", (PyCFunction)(void (*)(void))pack_weight, METH_FASTCALL, NULL},
    {"supported", supported, METH_NOARGS, NULL},
    {"multiplies_bytes", multiplies_bytes, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

#else

static PyObject *supported(PyObject *self, PyObject *ignored) {
    (void)self, (void)ignored;
    Py_RETURN_FALSE;
}

static PyMethodDef methods[] = {{"supported", supported, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};

#endif

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_forward", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__forward(void) { return PyModule_Create(&module); }
