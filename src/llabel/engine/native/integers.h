// Products of 8-bit integers: a block of rows times a strip of columns at a time, so that the sums
// are used while they are in the cache. They are exact: neither their order nor the way they are
// made decides about a result.
#pragma once
#include <algorithm>
#include <memory>

#include "simd.h"

constexpr int64_t STRIP = 64;               // columns of B
constexpr int64_t BLOCK = 4 * TILE_ROWS;    // rows of A, at most

#if defined(__AVX512VNNI__)

#define LLABEL_INTEGERS
constexpr int64_t PANEL_COLUMNS = STRIP, GROUP = 4;  // of B's copy; see `pack`
// One instruction multiplies bytes without a sign by bytes with one. B's copy is raised by so much.
constexpr int RAISED = 128;

// `ROWS` rows, `k` apart, times a panel, from `starts` on.
template <int ROWS>
static inline void int_tile(const int8_t* a, int64_t k, const int8_t* panel, const int32_t* starts,
                            int32_t* c) {
  constexpr int VECS = STRIP / 16;
  __m512i sums[ROWS][VECS];
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < VECS; v++) sums[r][v] = _mm512_set1_epi32(starts[r]);
  for (int64_t p = 0; p < k; p += GROUP, panel += GROUP * STRIP) {
    __m512i columns[VECS];
    for (int v = 0; v < VECS; v++) columns[v] = _mm512_loadu_si512(panel + 64 * v);
    for (int r = 0; r < ROWS; r++) {
      int32_t four;
      std::memcpy(&four, a + r * k + p, sizeof four);
      const __m512i row = _mm512_set1_epi32(four);
      for (int v = 0; v < VECS; v++) sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], columns[v], row);
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < VECS; v++) _mm512_storeu_si512(c + r * STRIP + 16 * v, sums[r][v]);
}

// Some rows of A, at most BLOCK, each `k` wide; k is a multiple of GROUP.
class IntRows {
 public:
  IntRows(const int8_t* a, int64_t rows, int64_t k) : a_(a), rows_(rows), k_(k) {
    for (int64_t r = 0; r < rows; r++) {
      int32_t total = 0;
      for (int64_t p = 0; p < k; p++) total += a[r * k + p];
      starts_[r] = -RAISED * total;
    }
  }

  // Times a strip of B's copy → (rows, STRIP).
  void times(const int8_t* strip, int32_t* c) const {
    for (int64_t i = 0; i < rows_; i += TILE_ROWS) {
      const int8_t* a = a_ + i * k_;
      const int32_t* starts = starts_ + i;
      int32_t* out = c + i * STRIP;
      const auto tile = [&](auto rows) { int_tile<rows>(a, k_, strip, starts, out); };
      with_rows<TILE_ROWS>(rows_ - i, tile);
    }
  }

 private:
  const int8_t* a_;
  int64_t rows_, k_;
  int32_t starts_[BLOCK];
};

#elif defined(__AVX2__)

// Two neighbours of a row and of a column are multiplied and added in one instruction, as 16-bit
// integers.
#define LLABEL_INTEGERS
constexpr int64_t PANEL_COLUMNS = 16, GROUP = 2;
constexpr int RAISED = 0;

static inline __m256i widened(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

static inline __m256i added(__m256i sums, __m256i a, __m256i b) {
#if defined(__AVXVNNI__)
  return _mm256_dpwssd_avx_epi32(sums, a, b);
#else
  // Left to itself, g++ keeps a sum in memory and waits for it on every turn of the loop.
  const __m256i products = _mm256_madd_epi16(a, b);
  asm("vpaddd %1, %0, %0" : "+x"(sums) : "x"(products));
  return sums;
#endif
}

// `ROWS` rows of 16-bit integers, `k` apart, times a panel.
template <int ROWS>
static inline void int_tile(const int16_t* a, int64_t k, const int8_t* panel, int32_t* c) {
  __m256i sums[ROWS][2];
  for (int r = 0; r < ROWS; r++) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
  for (int64_t p = 0; p < k; p += GROUP, panel += GROUP * PANEL_COLUMNS) {
    const __m256i left = widened(panel), right = widened(panel + 16);
    for (int r = 0; r < ROWS; r++) {
      int32_t pair;
      std::memcpy(&pair, a + r * k + p, sizeof pair);
      const __m256i both = _mm256_set1_epi32(pair);
      sums[r][0] = added(sums[r][0], both, left);
      sums[r][1] = added(sums[r][1], both, right);
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < 2; v++)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + r * STRIP + 8 * v), sums[r][v]);
}

class IntRows {
 public:
  IntRows(const int8_t* a, int64_t rows, int64_t k)
      : wide_(new int16_t[rows * k]), rows_(rows), k_(k) {
    std::copy_n(a, rows * k, wide_.get());
  }

  void times(const int8_t* strip, int32_t* c) const {
    for (int64_t j = 0; j < STRIP; j += PANEL_COLUMNS)
      for (int64_t i = 0; i < rows_; i += TILE_ROWS) {
        const int16_t* a = wide_.get() + i * k_;
        const int8_t* panel = strip + j * k_;
        int32_t* out = c + i * STRIP + j;
        with_rows<TILE_ROWS>(rows_ - i, [&](auto rows) { int_tile<rows>(a, k_, panel, out); });
      }
  }

 private:
  std::unique_ptr<int16_t[]> wide_;
  int64_t rows_, k_;
};

#else

// No products of integers: `Side.packed` is always null.
class IntRows {
 public:
  IntRows(const int8_t*, int64_t, int64_t) {}
  void times(const int8_t*, int32_t*) const {}
};

#endif
