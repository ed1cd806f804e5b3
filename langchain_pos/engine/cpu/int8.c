/* States times weights, both in eight bits.
 *
 * Weights w and states a are signed bytes from -127 to 127, in groups of GROUP features with a
 * scale each, t and s (GGUF's Q8_0 is the same with groups of 32):
 *
 *     out[r][c] = bias[c] + sum over groups g of  s[r][g] t[c][g] sum over i in g of  a[r][i] w[c][i]
 *
 * The inner sum is exact, in integers of 32 bits; the outer one is taken in the order of groups.
 * So a row's result is the same, to the last bit, whatever rows are beside it and whichever thread
 * computes it.
 *
 * Weights lie as [panel][feature / 4][PANEL channels][4 features]: a vector register holds four
 * features of each of its channels, and the state's four are broadcast to all of them.
 */
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma")))
#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11)
#define HAS_AVXVNNI 1
#define AVXVNNI __attribute__((target("avx2,fma,avxvnni")))
#endif
#define AVX512 __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")))
#endif
#define INLINE static inline __attribute__((always_inline))

enum { GROUP = 64, PANEL = 32, ROWS_AT_A_TIME = 128 };
enum { WITH_AVX2, WITH_AVX_VNNI, WITH_AVX512_VNNI };

/* A multiplication, as Python fills it in. */
struct job {
    const void *states;    /* [rows][features], float or bfloat16 */
    const int8_t *weights; /* [panels][features / 4][PANEL][4] */
    const float *scales;   /* [panels][features / GROUP][PANEL] */
    const float *bias;     /* [channels], or null */
    void *out;             /* [rows][channels], as the states */
    int8_t *whole;         /* [rows][features]: room for the states as whole numbers */
    float *units;          /* [rows][features / GROUP]: and for their scales */
    int64_t rows, features, channels;
    int32_t bfloat16;      /* whether states and results are bfloat16 */
    int32_t instructions;  /* see below */
    int32_t next, chunk;   /* the next panel to take, and how many at a time */
};

typedef void team(void (*work)(void *), void *job, unsigned threads, unsigned flags);

/* Add the products of four features of eight channels with those of a state. One factor goes
 * without its sign, which the other takes over, as the instructions want one without; a sum of two
 * such products fits into the sixteen bits that AVX2 has for it. */
#if defined(__x86_64__)
AVX2 INLINE __m256i add_avx2(__m256i sum, __m256i weights, __m256i states) {
    const __m256i pairs =
        _mm256_maddubs_epi16(_mm256_abs_epi8(states), _mm256_sign_epi8(weights, states));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

#ifdef HAS_AVXVNNI
AVXVNNI INLINE __m256i add_avxvnni(__m256i sum, __m256i weights, __m256i states) {
    return _mm256_dpbusd_avx_epi32(sum, _mm256_abs_epi8(states), _mm256_sign_epi8(weights, states));
}
#endif

/* `rows` rows, two at most, by one panel, into `out` [rows][PANEL]. Totals are kept in memory, as
 * there are no more than sixteen registers. */
#define TILE_256(name, target, add)                                                              \
    target INLINE void name(const int rows, const struct job *job, int64_t row, int64_t panel,   \
                            float *out) {                                                        \
        const int64_t features = job->features, groups = features / GROUP;                       \
        const int8_t *weights = job->weights + panel * PANEL * features;                         \
        const float *scales = job->scales + panel * PANEL * groups;                              \
        for (int r = 0; r < rows; r++)                                                           \
            for (int v = 0; v < 4; v++)                                                          \
                _mm256_storeu_ps(out + r * PANEL + 8 * v, _mm256_setzero_ps());                  \
        for (int64_t g = 0; g < groups; g++) {                                                   \
            const int8_t *states = job->whole + row * features + g * GROUP;                      \
            __m256i sum[2][4];                                                                   \
            for (int r = 0; r < rows; r++)                                                       \
                for (int v = 0; v < 4; v++) sum[r][v] = _mm256_setzero_si256();                  \
            _Pragma("GCC unroll 1") for (int k = 0; k < GROUP; k += 4) {                         \
                __m256i state[2];                                                                \
                for (int r = 0; r < rows; r++)                                                   \
                    state[r] = _mm256_set1_epi32(*(const int32_t *)(states + r * features + k)); \
                for (int v = 0; v < 4; v++) {                                                    \
                    const __m256i some = _mm256_loadu_si256((const __m256i *)(weights + 32 * v));\
                    for (int r = 0; r < rows; r++) sum[r][v] = add(sum[r][v], some, state[r]);   \
                }                                                                                \
                weights += 4 * PANEL;                                                            \
            }                                                                                    \
            for (int r = 0; r < rows; r++) {                                                     \
                const __m256 unit = _mm256_set1_ps(job->units[(row + r) * groups + g]);          \
                for (int v = 0; v < 4; v++) {                                                    \
                    float *total = out + r * PANEL + 8 * v;                                      \
                    const __m256 scale = _mm256_mul_ps(unit, _mm256_loadu_ps(scales + 8 * v));   \
                    _mm256_storeu_ps(total, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][v]),       \
                                                            scale, _mm256_loadu_ps(total)));     \
                }                                                                                \
            }                                                                                    \
            scales += PANEL;                                                                     \
        }                                                                                        \
    }
TILE_256(tile_avx2, AVX2, add_avx2)
#ifdef HAS_AVXVNNI
TILE_256(tile_avxvnni, AVXVNNI, add_avxvnni)
#endif

/* The same with instructions that sum four products of an unsigned and a signed factor: 128 is
 * added to the weights (their upper bit is flipped), and taken off the sum beforehand. */
AVX512 INLINE void tile_avx512(const int rows, const struct job *job, int64_t row, int64_t panel,
                               float *out) {
    const int64_t features = job->features, groups = features / GROUP;
    const int8_t *weights = job->weights + panel * PANEL * features;
    const float *scales = job->scales + panel * PANEL * groups;
    const __m512i flip = _mm512_set1_epi8(-128), ones = _mm512_set1_epi8(1);
    __m512 total[8][2];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 2; v++) total[r][v] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
        __m512i sum[8][2];
        for (int r = 0; r < rows; r++) {
            const int8_t *at = job->whole + (row + r) * features + g * GROUP;
            const __m512i all =
                _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, _mm512_loadu_si512(at));
            const __m512i less = _mm512_set1_epi32(-128 * _mm512_reduce_add_epi32(all));
            for (int v = 0; v < 2; v++) sum[r][v] = less;
        }
        for (int k = 0; k < GROUP / 4; k++) {
            const __m512i some[2] = {_mm512_xor_si512(_mm512_loadu_si512(weights), flip),
                                     _mm512_xor_si512(_mm512_loadu_si512(weights + 64), flip)};
            weights += 4 * PANEL;
            for (int r = 0; r < rows; r++) {
                const int8_t *at = job->whole + (row + r) * features + g * GROUP + 4 * k;
                const __m512i state = _mm512_set1_epi32(*(const int32_t *)at);
                for (int v = 0; v < 2; v++)
                    sum[r][v] = _mm512_dpbusd_epi32(sum[r][v], some[v], state);
            }
        }
        for (int r = 0; r < rows; r++) {
            const __m512 unit = _mm512_set1_ps(job->units[(row + r) * groups + g]);
            for (int v = 0; v < 2; v++) {
                const __m512 scale = _mm512_mul_ps(unit, _mm512_loadu_ps(scales + 16 * v));
                total[r][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][v]), scale, total[r][v]);
            }
        }
        scales += PANEL;
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 2; v++) _mm512_storeu_ps(out + r * PANEL + 16 * v, total[r][v]);
}
#endif

INLINE float from_bfloat16(uint16_t bits) {
    union { uint32_t whole; float value; } both = {(uint32_t)bits << 16};
    return both.value;
}

/* The nearest, of two equally near the even one; what is not a number stays none. */
INLINE uint16_t to_bfloat16(float value) {
    union { float value; uint32_t whole; } both = {value};
    if (value != value) return 0x7fc0;
    return (uint16_t)((both.whole + 0x7fff + ((both.whole >> 16) & 1)) >> 16);
}

/* A row's sums, with the bias, where they belong. */
INLINE void store(const struct job *job, int64_t row, int64_t panel, const float *sums) {
    const int64_t first = panel * PANEL, left = job->channels - first;
    const int count = left < PANEL ? (int)left : PANEL;
    const int64_t at = row * job->channels + first;
    float with_bias[PANEL];
    for (int c = 0; c < count; c++)
        with_bias[c] = job->bias ? sums[c] + job->bias[first + c] : sums[c];
    if (job->bfloat16)
        for (int c = 0; c < count; c++) ((uint16_t *)job->out)[at + c] = to_bfloat16(with_bias[c]);
    else
        for (int c = 0; c < count; c++) ((float *)job->out)[at + c] = with_bias[c];
}

#define PANEL_BY_ROWS(name, target, most)                                                       \
    target static void name(const struct job *job, int64_t panel, int64_t begin, int64_t end) { \
        float sums[most * PANEL];                                                               \
        int64_t row = begin;                                                                    \
        for (; row + most <= end; row += most) {                                                \
            TILE(most);                                                                         \
            for (int r = 0; r < most; r++) store(job, row + r, panel, sums + r * PANEL);        \
        }                                                                                       \
        switch (end - row) { REST }                                                             \
        for (int r = 0; row + r < end; r++) store(job, row + r, panel, sums + r * PANEL);       \
    }

#if defined(__x86_64__)
#define TILE(rows) tile_avx2(rows, job, row, panel, sums)
#define REST case 1: TILE(1); break;
PANEL_BY_ROWS(panel_avx2, AVX2, 2)
#undef TILE
#ifdef HAS_AVXVNNI
#define TILE(rows) tile_avxvnni(rows, job, row, panel, sums)
PANEL_BY_ROWS(panel_avxvnni, AVXVNNI, 2)
#undef TILE
#endif
#undef REST
#define TILE(rows) tile_avx512(rows, job, row, panel, sums)
#define REST                                                                                    \
    case 1: TILE(1); break;                                                                     \
    case 2: TILE(2); break;                                                                     \
    case 3: TILE(3); break;                                                                     \
    case 4: TILE(4); break;                                                                     \
    case 5: TILE(5); break;                                                                     \
    case 6: TILE(6); break;                                                                     \
    case 7: TILE(7); break;
PANEL_BY_ROWS(panel_avx512, AVX512, 8)
#endif

/* Panels, until none is left. */
static void multiply(void *given) {
    struct job *job = given;
    const int64_t panels = (job->channels + PANEL - 1) / PANEL;
    for (;;) {
        const int64_t first = __atomic_fetch_add(&job->next, job->chunk, __ATOMIC_RELAXED);
        if (first >= panels) return;
        const int64_t last = first + job->chunk < panels ? first + job->chunk : panels;
        for (int64_t row = 0; row < job->rows; row += ROWS_AT_A_TIME) {
            const int64_t end =
                row + ROWS_AT_A_TIME < job->rows ? row + ROWS_AT_A_TIME : job->rows;
            for (int64_t panel = first; panel < last; panel++) {
#if defined(__x86_64__)
                if (job->instructions == WITH_AVX512_VNNI)
                    panel_avx512(job, panel, row, end);
#ifdef HAS_AVXVNNI
                else if (job->instructions == WITH_AVX_VNNI)
                    panel_avxvnni(job, panel, row, end);
#endif
                else
                    panel_avx2(job, panel, row, end);
#endif
            }
        }
    }
}

#if defined(__x86_64__)
AVX2 INLINE __m256 load_states(const struct job *job, int64_t at) {
    if (!job->bfloat16) return _mm256_loadu_ps((const float *)job->states + at);
    const __m128i half = _mm_loadu_si128((const __m128i *)((const uint16_t *)job->states + at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* A row's states as whole numbers and scales. A state that is not finite makes its scale so. */
AVX2 static void round_row(const struct job *job, int64_t row) {
    const int64_t groups = job->features / GROUP;
    const __m256 sign = _mm256_set1_ps(-0.0f);
    for (int64_t g = 0; g < groups; g++) {
        const int64_t at = row * job->features + g * GROUP;
        __m256 state[8], most = _mm256_setzero_ps(), none = _mm256_setzero_ps();
        for (int i = 0; i < 8; i++) {
            state[i] = load_states(job, at + 8 * i);
            most = _mm256_max_ps(most, _mm256_andnot_ps(sign, state[i]));
            none = _mm256_fmadd_ps(state[i], _mm256_setzero_ps(), none);
        }
        float each[8], nothing[8], largest = 0, zero = 0;
        _mm256_storeu_ps(each, most);
        _mm256_storeu_ps(nothing, none);
        for (int i = 0; i < 8; i++) {
            if (each[i] > largest) largest = each[i];
            zero += nothing[i];
        }
        job->units[row * groups + g] = largest / 127 + zero;
        const __m256 per = _mm256_set1_ps(largest > 1e-30f ? 127 / largest : 0);
        for (int i = 0; i < 8; i += 4) {
            __m256i part[4];
            for (int j = 0; j < 4; j++)
                part[j] = _mm256_cvtps_epi32(_mm256_mul_ps(state[i + j], per));
            const __m256i first = _mm256_packs_epi32(part[0], part[1]);
            const __m256i second = _mm256_packs_epi32(part[2], part[3]);
            const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            const __m256i bytes =
                _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, second), order);
            _mm256_storeu_si256((__m256i *)(job->whole + at + 8 * i), bytes);
        }
    }
}
#endif

static void round_rows(void *given) {
    struct job *job = given;
    for (;;) {
        const int64_t row = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (row >= job->rows) return;
        round_row(job, row);
    }
}

/* One multiplication, by `threads` threads of a team, or by the caller alone if it is null. */
void langchain_pos_int8_multiply(struct job *job, team *run, int32_t threads) {
    enum { ALONE = 8192 }; /* states that are rounded in the time it takes to wake a team */
    job->next = 0;
    if (run && job->rows * job->features > ALONE)
        run(round_rows, job, (unsigned)threads, 0);
    else
        round_rows(job);
    const int64_t panels = (job->channels + PANEL - 1) / PANEL;
    job->next = 0;
    job->chunk = (int32_t)(panels / (8 * threads)) > 0 ? (int32_t)(panels / (8 * threads)) : 1;
    if (run && threads > 1)
        run(multiply, job, (unsigned)threads, 0);
    else
        multiply(job);
}
