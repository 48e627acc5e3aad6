// What stands between the matrix products of a decoder layer, fused; plain C for ctypes.
//
// Tensors are float32, contiguous unless a stride is given, with `n` tokens of all rows of a
// micro-batch one after the other. No result depends on the number of threads.
#include <cmath>

#include "simd.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {

// A row → int8 and its scale: the largest magnitude becomes 127. `weight` (k) multiplies first.
inline float quantise_row(const float* x, const float* weight, int64_t k, int8_t* out) {
  vec top = splat(0.0f);
  for (int64_t j = 0; j < k; j += LANES) top = larger(top, magnitude(load(x + j) * load(weight + j)));
  float most = largest(top);
  most = most > 1e-12f ? most : 1e-12f;
  const float inverse = 127.0f / most;
  const vec magic = splat(12582912.0f);  // rounds to the nearest, halves to even
  for (int64_t j = 0; j < k; j += LANES) {
    vec shifted = load(x + j) * load(weight + j) * inverse + magic;
    ivec bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    const auto bytes = __builtin_convertvector(bits, bvec);
    std::memcpy(out + j, &bytes, sizeof bytes);
  }
  return most / 127.0f;
}

struct Dequantise {  // int32 sums times a scale per row and per column, onto `residual` if any
  const int32_t* sums;
  const float *rows, *columns, *residual;
  int64_t ld_sums, ld_residual;
  vec operator()(int64_t i, int64_t j) const {
    // One fused multiply-add either way, so that all tiles round alike.
    const vec base = residual ? load(residual + i * ld_residual + j) : vec{};
    return to_float(load_int(sums + i * ld_sums + j)) * rows[i] * load(columns + j) + base;
  }
};

template <class Start>
void parallel_product(int64_t m, int64_t n, int64_t k, const float* a, int64_t row_stride,
                      int64_t k_stride, const float* b, int64_t ldb, float* c, int64_t ldc,
                      const Start& start) {
  if (m >= 192) {
    constexpr int64_t BLOCK = 16 * TILE_ROWS;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < m; i += BLOCK)
      product(i, i + BLOCK < m ? i + BLOCK : m, n, k, a, row_stride, k_stride, b, ldb, c, ldc,
              start);
    return;
  }
  constexpr int64_t WIDTH = PANEL * LANES;  // few rows: columns are shared out
#pragma omp parallel for schedule(static)
  for (int64_t j = 0; j < n; j += WIDTH) {
    const int64_t width = j + WIDTH < n ? WIDTH : n - j;
    const auto shifted = [&](int64_t i, int64_t column) { return start(i, j + column); };
    product(0, m, width, k, a, row_stride, k_stride, b + j, ldb, c + j, ldc, shifted);
  }
}

}  // namespace

API int lanes() { return LANES; }

// out = x · rsqrt(mean(x²) + eps) · weight (Zhang & Sennrich 2019, RMSNorm, eq. 4), and, unless
// `quantised` is null, out / smooth in int8 with a scale per row.
API void rms_norm(const float* x, const float* weight, const float* unsmooth, float eps, int64_t n,
                  int64_t width, float* out, float* reciprocal, int8_t* quantised, float* scales) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; i++) {
    const float* row = x + i * width;
    vec squares = splat(0.0f);
    for (int64_t j = 0; j < width; j += LANES) squares += load(row + j) * load(row + j);
    const float r = 1.0f / std::sqrt(sum(squares) / width + eps);
    reciprocal[i] = r;
    for (int64_t j = 0; j < width; j += LANES)
      store(out + i * width + j, load(row + j) * r * load(weight + j));
    if (quantised)
      scales[i] = quantise_row(out + i * width, unsmooth, width, quantised + i * width);
  }
}

// residual + the gradient through `rms_norm`; also its output again, for the adapters' gradients,
// and, unless `quantised` is null, the gradient times `columns` in int8 with a scale per row.
API void rms_norm_backward(const float* grad, const float* x, const float* weight,
                           const float* reciprocal, const float* residual, const float* columns,
                           int64_t n, int64_t width, float* out, float* normed, int8_t* quantised,
                           float* scales) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; i++) {
    const float *g = grad + i * width, *row = x + i * width;
    const float r = reciprocal[i];
    vec dots = splat(0.0f);
    for (int64_t j = 0; j < width; j += LANES) dots += load(g + j) * load(weight + j) * load(row + j);
    const float pull = sum(dots) * r * r * r / width;
    for (int64_t j = 0; j < width; j += LANES) {
      const vec w = load(weight + j), v = load(row + j);
      vec d = load(g + j) * w * r - v * pull;
      if (residual) d += load(residual + i * width + j);
      store(out + i * width + j, d);
      store(normed + i * width + j, v * r * w);
    }
    if (quantised) scales[i] = quantise_row(out + i * width, columns, width, quantised + i * width);
  }
}

// Rows times `weight` (width) → int8 and scales; the rows of x stand `stride` apart.
API void quantise(const float* x, int64_t stride, const float* weight, int64_t n, int64_t width,
                  int8_t* out, float* scales) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; i++)
    scales[i] = quantise_row(x + i * stride, weight, width, out + i * width);
}

// C (m, n) = start + A (m, k) B (k, n), where the start is, in this order of choice: int32 sums
// times their scales (plus a residual), C as it is (`keep`), or nothing.
API void matmul(int64_t m, int64_t n, int64_t k, const float* a, int64_t row_stride,
                int64_t k_stride, const float* b, int64_t ldb, float* c, int64_t ldc, int keep,
                const int32_t* sums, int64_t ld_sums, const float* rows, const float* columns,
                const float* residual, int64_t ld_residual) {
  if (sums)
    parallel_product(m, n, k, a, row_stride, k_stride, b, ldb, c, ldc,
                     Dequantise{sums, rows, columns, residual, ld_sums, ld_residual});
  else if (keep)
    parallel_product(m, n, k, a, row_stride, k_stride, b, ldb, c, ldc, Keep{c, ldc});
  else
    parallel_product(m, n, k, a, row_stride, k_stride, b, ldb, c, ldc, Zero{});
}

// Rotary positions (Su et al. 2021, RoFormer, eq. 34, halves as in Llama) in place on the first
// `heads` heads of each token; `sign` -1 is the inverse, which is also the gradient.
API void rotate(float* x, int64_t stride, const float* cosines, const float* sines,
                const int64_t* positions, int64_t n, int64_t heads, int64_t width, float sign) {
  const int64_t half = width / 2;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; i++) {
    const float *c = cosines + positions[i] * half, *s = sines + positions[i] * half;
    for (int64_t h = 0; h < heads; h++) {
      float *left = x + i * stride + h * width, *right = left + half;
#pragma omp simd
      for (int64_t j = 0; j < half; j++) {
        const float l = left[j], r = right[j], sine = sign * s[j];
        left[j] = l * c[j] - r * sine;
        right[j] = r * c[j] + l * sine;
      }
    }
  }
}

// silu(gate) · up (Shazeer 2020, SwiGLU), gate and up side by side in x (n, 2 · width); unless
// `quantised` is null, out · unsmooth in int8 with a scale per row.
API void swiglu(const float* x, const float* unsmooth, int64_t n, int64_t width, float* out,
                int8_t* quantised, float* scales) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; i++) {
    const float *gate = x + i * 2 * width, *up = gate + width;
    for (int64_t j = 0; j < width; j += LANES) {
      const vec g = load(gate + j);
      store(out + i * width + j, g / (1.0f + exponential(-g)) * load(up + j));
    }
    if (quantised)
      scales[i] = quantise_row(out + i * width, unsmooth, width, quantised + i * width);
  }
}

// The gradient through `swiglu` (n, 2 · width), and its output again, for the adapters' gradients;
// unless `quantised` is null, the gradient times `columns` in int8 with a scale per row.
API void swiglu_backward(const float* grad, const float* x, const float* columns, int64_t n,
                         int64_t width, float* out, float* product, int8_t* quantised,
                         float* scales) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; i++) {
    const float *gate = x + i * 2 * width, *up = gate + width;
    float *d_gate = out + i * 2 * width, *d_up = d_gate + width;
    for (int64_t j = 0; j < width; j += LANES) {
      const vec g = load(gate + j), u = load(up + j), d = load(grad + i * width + j);
      const vec sigmoid = 1.0f / (1.0f + exponential(-g)), silu = g * sigmoid;
      store(d_gate + j, d * u * sigmoid * (1.0f + g - silu));
      store(d_up + j, d * silu);
      store(product + i * width + j, silu * u);
    }
    if (quantised)
      scales[i] = quantise_row(d_gate, columns, 2 * width, quantised + i * 2 * width);
  }
}
