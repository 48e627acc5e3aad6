// Vectors of floats, the exponential, and the one matrix product that everything here uses.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16, PANEL = 4;  // floats of a register, registers of a tile's row
#elif defined(__AVX__)
constexpr int LANES = 8, PANEL = 2;
#else
constexpr int LANES = 4, PANEL = 4;
#endif
constexpr int TILE_ROWS = 6;

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef int8_t bvec __attribute__((vector_size(LANES)));

static inline vec load(const float* p) { vec v; std::memcpy(&v, p, sizeof v); return v; }
static inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }
static inline vec splat(float x) { return x - vec{}; }
static inline ivec load_int(const int32_t* p) { ivec v; std::memcpy(&v, p, sizeof v); return v; }
static inline vec to_float(ivec v) { return __builtin_convertvector(v, vec); }

// a · b + c, rounded once where the processor can. Compilers may not fuse on their own here: they
// would in one tile and not in another, and a row's result would depend on the rows beside it.
static inline vec fused(vec a, vec b, vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__) && defined(__AVX__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

static inline vec larger(vec a, vec b) { return a > b ? a : b; }
static inline vec smaller(vec a, vec b) { return a < b ? a : b; }

static inline float sum(vec v) {
  float total = 0;
  for (int i = 0; i < LANES; i++) total += v[i];
  return total;
}

static inline float largest(vec v) {
  float found = v[0];
  for (int i = 1; i < LANES; i++) found = v[i] > found ? v[i] : found;
  return found;
}

static inline ivec bits_of(vec v) { ivec bits; std::memcpy(&bits, &v, sizeof bits); return bits; }

// e^x to about 2 ulp: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes, expf).
static inline vec exponential(vec x) {
  x = smaller(larger(x, splat(-87.0f)), splat(88.0f));
  const vec magic = splat(12582912.0f);  // 1.5 · 2^23: adding it rounds to a whole number
  const vec shifted = fused(x, splat(1.44269504088896341f), magic);
  const vec n = shifted - magic;
  const vec r = fused(n, splat(2.12194440e-4f), fused(n, splat(-0.693359375f), x));
  vec p = splat(1.9875691500e-4f);
  p = fused(p, r, splat(1.3981999507e-3f));
  p = fused(p, r, splat(8.3334519073e-3f));
  p = fused(p, r, splat(4.1665795894e-2f));
  p = fused(p, r, splat(1.6666665459e-1f));
  p = fused(p, r, splat(5.0000001201e-1f));
  p = fused(p * r, r, r) + 1.0f;
  const ivec bits = (bits_of(shifted) << 23) + 0x3f800000;  // the low bits of `shifted` are n
  vec power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

// What a tile of C starts from.
struct Zero {
  vec operator()(int64_t, int64_t) const { return vec{}; }
};
struct Keep {  // C itself
  const float* c;
  int64_t ldc;
  vec operator()(int64_t i, int64_t j) const { return load(c + i * ldc + j); }
};

// A product's B: from column j on, a multiple of LANES, row p's next LANES stand at
// p · row + j / LANES · group.
struct Right {
  const float* at;
  int64_t row, group;
};
static inline Right as_rows(const float* b, int64_t ldb) { return {b, ldb, LANES}; }
// (n / LANES, k, LANES): in rows, B's next LANES are on another page and, where a row is long by a
// multiple of a large power of two, in the same few sets of the cache.
static inline Right as_panels(const float* b, int64_t k) { return {b, LANES, k * LANES}; }

template <int ROWS, int VECS, class Start>
static inline void tile(const float* a, int64_t row_stride, int64_t k_stride, const Right& b,
                        float* c, int64_t ldc, int64_t k, int64_t i, int64_t j,
                        const Start& start) {
  vec acc[ROWS][VECS];
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < VECS; v++) acc[r][v] = start(i + r, j + v * LANES);
  a += i * row_stride;
  const float* columns = b.at + j / LANES * b.group;
  for (int64_t p = 0; p < k; p++, columns += b.row) {
    vec row[VECS];
    for (int v = 0; v < VECS; v++) row[v] = load(columns + v * b.group);
    for (int r = 0; r < ROWS; r++) {
      const vec x = splat(a[r * row_stride + p * k_stride]);
      for (int v = 0; v < VECS; v++) acc[r][v] = fused(x, row[v], acc[r][v]);
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < VECS; v++) store(c + (i + r) * ldc + j + v * LANES, acc[r][v]);
}

// Calls f with the smaller of MOST and rows (at least 1) as a constant, so that a tile's sums stay
// in registers.
template <int MOST, class F>
static inline void with_rows(int64_t rows, const F& f) {
  if constexpr (MOST > 1)
    if (rows < MOST) return with_rows<MOST - 1>(rows, f);
  f(std::integral_constant<int, MOST>{});
}

// C (m, n) = start + A (m, k) B (k, n), where A's element (i, p) stands at
// i · row_stride + p · k_stride. n is a multiple of LANES. Each element sums over p in order,
// whatever tile it falls in, so a row's result does not depend on the rows beside it.
template <class Start>
static inline void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t row_stride,
                           int64_t k_stride, const Right& b, float* c, int64_t ldc,
                           const Start& start) {
  constexpr int64_t WIDTH = PANEL * LANES;
  const auto columns = [&](auto vectors, int64_t j) {
    constexpr int VECS = vectors;
    for (int64_t i = 0; i < m; i += TILE_ROWS)
      with_rows<TILE_ROWS>(m - i, [&](auto rows) {
        tile<rows, VECS>(a, row_stride, k_stride, b, c, ldc, k, i, j, start);
      });
  };
  int64_t j = 0;
  for (; j + WIDTH <= n; j += WIDTH) columns(std::integral_constant<int, PANEL>{}, j);
  for (; j < n; j += LANES) columns(std::integral_constant<int, 1>{}, j);
}
