// B's copy for products of 8-bit integers, and the products by themselves.
#include "integers.h"

#if defined(LLABEL_INTEGERS)

#define API extern "C" __attribute__((visibility("default")))

// Bytes of the copy of a B (k, n).
API int64_t packed_size(int64_t k, int64_t n) { return (n + STRIP - 1) / STRIP * STRIP * k; }

// B (k, n), whose element (p, j) stands at p · k_stride + j · n_stride, as panels in which GROUP
// rows lie side by side: (n / PANEL_COLUMNS, k / GROUP, PANEL_COLUMNS, GROUP), as if n were the next
// multiple of STRIP, with zeros beyond it. k is a multiple of GROUP.
API void pack(const int8_t* b, int64_t k, int64_t n, int64_t k_stride, int64_t n_stride,
              int8_t* packed) {
#pragma omp parallel for schedule(static)
  for (int64_t j = 0; j < packed_size(1, n); j += PANEL_COLUMNS) {
    int8_t* to = packed + j * k;
    for (int64_t p = 0; p < k; p += GROUP)
      for (int64_t c = j; c < j + PANEL_COLUMNS; c++)
        for (int64_t q = p; q < p + GROUP; q++)
          *to++ = static_cast<int8_t>((c < n ? b[q * k_stride + c * n_stride] : 0) + RAISED);
  }
}

// C (m, n) = A (m, k) times a packed B (k, n).
API void int_product(const int8_t* a, int64_t m, int64_t k, const int8_t* packed, int64_t n,
                     int32_t* c) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t first = 0; first < m; first += BLOCK) {
    const int64_t rows = std::min(BLOCK, m - first);
    const IntRows block(a + first * k, rows, k);
    int32_t sums[BLOCK * STRIP];
    for (int64_t j = 0; j < n; j += STRIP) {
      block.times(packed + j * k, sums);
      for (int64_t i = 0; i < rows; i++)
        std::copy_n(sums + i * STRIP, std::min(STRIP, n - j), c + (first + i) * n + j);
    }
  }
}
#endif
