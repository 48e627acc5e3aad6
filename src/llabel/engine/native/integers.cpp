// Products of 8-bit integers where PyTorch has no fast one: on processors with AVX2, not AVX-512.
//
// Two neighbours of a row and of a column are multiplied and added in one instruction, as 16-bit
// integers. Sums are exact, so neither their order nor this file decides about a result.
#include <algorithm>
#include <memory>

#include "simd.h"

#if defined(__AVX2__)
#include <immintrin.h>

#define API extern "C" __attribute__((visibility("default")))

namespace {

constexpr int64_t COLUMNS = 16;      // of a panel: two registers of sums
constexpr int64_t ROWS = 4;          // of a tile
constexpr int64_t BLOCK = 12 * ROWS;  // rows whose 16-bit copy stays in the cache

__m256i widened(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

__m256i added(__m256i sums, __m256i a, __m256i b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return _mm256_dpwssd_epi32(sums, a, b);
#elif defined(__AVXVNNI__)
  return _mm256_dpwssd_avx_epi32(sums, a, b);
#else
  // Left to itself, g++ keeps a sum in memory and waits for it on every turn of the loop.
  const __m256i products = _mm256_madd_epi16(a, b);
  asm("vpaddd %1, %0, %0" : "+x"(sums) : "x"(products));
  return sums;
#endif
}

// `R` rows of 16-bit integers, `k` apart, times a panel.
template <int R>
void tile(const int16_t* a, int64_t k, const int8_t* panel, int32_t* c, int64_t n, bool whole) {
  __m256i sums[R][2];
  for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
  for (int64_t p = 0; p < k; p += 2) {
    const __m256i left = widened(panel + p * COLUMNS), right = widened(panel + p * COLUMNS + 16);
    for (int r = 0; r < R; r++) {
      int32_t pair;
      std::memcpy(&pair, a + r * k + p, sizeof pair);
      const __m256i both = _mm256_set1_epi32(pair);
      sums[r][0] = added(sums[r][0], both, left);
      sums[r][1] = added(sums[r][1], both, right);
    }
  }
  for (int r = 0; r < R; r++) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + r * n), sums[r][0]);
    if (whole) _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + r * n + 8), sums[r][1]);
  }
}

void tile_rows(int64_t rows, const int16_t* a, int64_t k, const int8_t* panel, int32_t* c,
               int64_t n, bool whole) {
  switch (rows) {
    case 1: return tile<1>(a, k, panel, c, n, whole);
    case 2: return tile<2>(a, k, panel, c, n, whole);
    case 3: return tile<3>(a, k, panel, c, n, whole);
    default: return tile<ROWS>(a, k, panel, c, n, whole);
  }
}

}  // namespace

API int64_t packed_size(int64_t k, int64_t n) { return (n + COLUMNS - 1) / COLUMNS * COLUMNS * k; }

// B (k, n), whose element (p, j) stands at p · k_stride + j · n_stride, as panels of 16 columns in
// which pairs of rows lie side by side: (n / 16, k / 2, 16, 2), zeros beyond n. k is even.
API void pack(const int8_t* b, int64_t k, int64_t n, int64_t k_stride, int64_t n_stride,
              int8_t* packed) {
#pragma omp parallel for schedule(static)
  for (int64_t j = 0; j < n; j += COLUMNS) {
    int8_t* to = packed + j * k;
    for (int64_t p = 0; p < k; p += 2)
      for (int64_t c = j; c < j + COLUMNS; c++)
        for (int64_t q = p; q < p + 2; q++) *to++ = c < n ? b[q * k_stride + c * n_stride] : 0;
  }
}

// C (m, n) = A (m, k) times a packed B (k, n). k is even, n a multiple of 8.
API void int_product(const int8_t* a, int64_t m, int64_t k, const int8_t* packed, int64_t n,
                     int32_t* c) {
#pragma omp parallel
  {
    const std::unique_ptr<int16_t[]> wide(new int16_t[BLOCK * k]);
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < m; first += BLOCK) {
      const int64_t rows = std::min(BLOCK, m - first);
      std::copy_n(a + first * k, rows * k, wide.get());
      for (int64_t j = 0; j < n; j += COLUMNS)
        for (int64_t i = 0; i < rows; i += ROWS)
          tile_rows(std::min(ROWS, rows - i), wide.get() + i * k, k, packed + j * k,
                    c + (first + i) * n + j, n, j + COLUMNS <= n);
    }
  }
}
#endif
