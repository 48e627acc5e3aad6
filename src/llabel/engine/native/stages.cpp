// What a decoder layer does between two frozen products, fused: a block of rows leaves one product,
// passes through norm, rotary positions or SwiGLU, and enters the next while it is in the cache.
//
// Tensors are float32 and contiguous, `n` tokens of all rows of a micro-batch one after the other.
// No row's result depends on other rows, nor on the number of threads.
#include <algorithm>
#include <cmath>
#include <memory>

#include <omp.h>

#include "integers.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {

// Some of a side's columns, and a matrix of the adapters between these and some ranks.
struct Part {
  int64_t column, width, rank, ranks;
  const float* matrix;  // entering (width, ranks), leaving (ranks, width); see `as_panels`
};

// One side of a frozen product with adapters: what enters it, or what leaves it.
struct Side {
  float* values;   // (n, width): the rows themselves; null where they are wanted on the way only
  float* middle;   // (n, ranks): written when entering, read when leaving
  int8_t* rounded; // in integers: what enters (n, width), or what has entered (n, depth)
  const int8_t* packed;  // leaving in integers: what to multiply them with, as `pack` made it, or
  int32_t* sums;   // (n, width), the product; both null in float, where `values` is the product
  float* rows;     // (n,) scales
  const float* columns;   // (width,) scales
  const float* residual;  // leaving: (n, width) to add, rows `ld_residual` apart (0: one for all)
  const Part* parts;
  int64_t width, ranks, n_parts, ld_residual, depth;
};

// A row → int8 and its scale: the largest magnitude becomes 127. `columns` multiply first. A row
// with an infinity or a NaN gets a scale of its kind: as whole numbers, their bits are the largest.
float quantise_row(const float* x, const float* columns, int64_t width, int8_t* out) {
  ivec top{};
  for (int64_t j = 0; j < width; j += LANES) {
    const ivec bits = bits_of(load(x + j) * load(columns + j)) & 0x7fffffff;
    top = bits > top ? bits : top;
  }
  int32_t highest = top[0];
  for (int v = 1; v < LANES; v++) highest = std::max(highest, top[v]);
  float most;
  std::memcpy(&most, &highest, sizeof most);
  most = std::max(most, 1e-12f);
  const float inverse = 127.0f / most;
  const vec magic = splat(12582912.0f);  // rounds to the nearest, halves to even
  for (int64_t j = 0; j < width; j += LANES) {
    const ivec bits = bits_of(fused(load(x + j) * load(columns + j), splat(inverse), magic));
    const auto bytes = __builtin_convertvector(bits, bvec);
    std::memcpy(out + j, &bytes, sizeof bytes);
  }
  return most / 127.0f;
}

// What the adapters' product is added to.
struct Dequantised {
  const int32_t* sums;
  const float *rows, *columns, *residual;
  int64_t ld, ld_residual;
  vec operator()(int64_t i, int64_t j) const {
    return fused(to_float(load_int(sums + i * ld + j)) * rows[i], load(columns + j),
                 load(residual + i * ld_residual + j));
  }
};
struct Product {
  const float *values, *residual;
  int64_t ld, ld_residual;
  vec operator()(int64_t i, int64_t j) const {
    return load(values + i * ld + j) + load(residual + i * ld_residual + j);
  }
};

// Of rows [first, last) the columns [from, to) leave: product, adapters and residual together, into
// `out` (rows from first). `sums` holds these columns, rows `ld` apart.
void leave_columns(const Side& side, int64_t first, int64_t last, int64_t from, int64_t to,
                   const int32_t* sums, int64_t ld, float* out) {
  for (int64_t p = 0; p < side.n_parts; p++) {
    const Part& part = side.parts[p];
    const int64_t low = std::max(part.column, from);
    const int64_t high = std::min(part.column + part.width, to);
    if (low >= high) continue;
    const float* residual = side.residual + first * side.ld_residual + low;
    const auto add = [&](const auto& start) {
      product(last - first, high - low, part.ranks,
              side.middle + first * side.ranks + part.rank, side.ranks, 1,
              as_panels(part.matrix + (low - part.column) * part.ranks, part.ranks), out + low,
              side.width, start);
    };
    if (sums)
      add(Dequantised{sums + (low - from), side.rows + first, side.columns + low, residual, ld,
                      side.ld_residual});
    else
      add(Product{side.values + first * side.width + low, residual, side.width, side.ld_residual});
  }
}

// Rows [first, last) leave, into `out` (rows from first).
void leave(const Side& side, int64_t first, int64_t last, float* out) {
  if (!side.packed) {
    const int32_t* sums = side.sums ? side.sums + first * side.width : nullptr;
    return leave_columns(side, first, last, 0, side.width, sums, side.width, out);
  }
  const IntRows rows(side.rounded + first * side.depth, last - first, side.depth);
  int32_t sums[BLOCK * STRIP];
  for (int64_t j = 0; j < side.width; j += STRIP) {
    rows.times(side.packed + j * side.depth, sums);
    leave_columns(side, first, last, j, std::min(j + STRIP, side.width), sums, STRIP, out);
  }
}

// Rows [first, last) enter: into the adapters' ranks, and into integers.
void enter(const Side& side, int64_t first, int64_t last, const float* rows) {
  for (int64_t p = 0; p < side.n_parts; p++) {
    const Part& part = side.parts[p];
    product(last - first, part.ranks, part.width, rows + part.column, side.width, 1,
            as_panels(part.matrix, part.width), side.middle + first * side.ranks + part.rank,
            side.ranks, Zero{});
  }
  if (side.rounded)
    for (int64_t i = first; i < last; i++)
      side.rows[i] = quantise_row(rows + (i - first) * side.width, side.columns, side.width,
                                  side.rounded + i * side.width);
}

// `each(first, last, scratch)` for blocks of rows: no larger than BLOCK, and smaller where some
// threads would have none. `scratch` holds `floats` of a thread's own.
template <class Each>
void for_blocks(int64_t n, int64_t floats, const Each& each) {
#pragma omp parallel
  {
    const int64_t tiles = n / (omp_get_num_threads() * TILE_ROWS) + 1;  // of a thread, at most
    const int64_t block = std::min(BLOCK, tiles * TILE_ROWS);
    const std::unique_ptr<float[]> scratch(new float[floats]);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < n; first += block)
      each(first, std::min(first + block, n), scratch.get());
  }
}

float* place(float* values, int64_t first, int64_t width, float* scratch) {
  return values ? values + first * width : scratch;
}

struct Rotary {
  const float *cosines, *sines;  // (length, width / 2)
  const int64_t* positions;      // (n,)
  int64_t heads, width;          // of each token, the first `heads` heads turn
};

// Su et al. 2021, RoFormer, eq. 34, halves as in Llama; `sign` -1 is the inverse and the gradient.
void rotate(const Rotary& r, int64_t token, float* row, float sign) {
  const int64_t half = r.width / 2;
  const float *c = r.cosines + r.positions[token] * half, *s = r.sines + r.positions[token] * half;
  for (int64_t h = 0; h < r.heads; h++) {
    float *left = row + h * r.width, *right = left + half;
#pragma omp simd
    for (int64_t j = 0; j < half; j++) {
      const float l = left[j], t = right[j], sine = sign * s[j];
      left[j] = l * c[j] - t * sine;
      right[j] = t * c[j] + l * sine;
    }
  }
}

}  // namespace

API int lanes() { return LANES; }

API void enter_rows(const float* x, int64_t n, const Side* next) {
  for_blocks(n, 0, [&](int64_t first, int64_t last, float*) {
    enter(*next, first, last, x + first * next->width);
  });
}

API void leave_rows(const Side* last_product, int64_t n) {
  for_blocks(n, 0, [&](int64_t first, int64_t last, float*) {
    leave(*last_product, first, last, last_product->values + first * last_product->width);
  });
}

// x · rsqrt(mean(x²) + eps) · weight (Zhang & Sennrich 2019, RMSNorm, eq. 4), where x is what
// leaves `before`, if that is not null.
API void norm(const Side* before, const float* x, const float* weight, float eps, int64_t n,
              float* roots, const Side* next) {
  const int64_t width = next->width;
  for_blocks(n, BLOCK * width, [&](int64_t first, int64_t last, float* scratch) {
    const float* rows = before ? before->values + first * width : x + first * width;
    if (before) leave(*before, first, last, before->values + first * width);
    float* normed = place(next->values, first, width, scratch);
    for (int64_t i = 0; i < last - first; i++) {
      const float* row = rows + i * width;
      vec squares = splat(0.0f);
      for (int64_t j = 0; j < width; j += LANES)
        squares = fused(load(row + j), load(row + j), squares);
      const float r = 1.0f / std::sqrt(sum(squares) / width + eps);
      roots[first + i] = r;
      for (int64_t j = 0; j < width; j += LANES)
        store(normed + i * width + j, load(row + j) * r * load(weight + j));
    }
    enter(*next, first, last, normed);
  });
}

// What leaves `before` is the gradient of the norm's output; out is that of x, plus `residual`.
// `normed` gets the norm's output again, for the adapters' gradients. `next` may be null.
API void norm_backward(const Side* before, const float* x, const float* weight, const float* roots,
                       const float* residual, int64_t n, float* out, float* normed,
                       const Side* next) {
  const int64_t width = before->width;
  for_blocks(n, BLOCK * width, [&](int64_t first, int64_t last, float* scratch) {
    float* grad = place(before->values, first, width, scratch);
    leave(*before, first, last, grad);
    for (int64_t i = 0; i < last - first; i++) {
      const float *g = grad + i * width, *row = x + (first + i) * width;
      const float r = roots[first + i];
      vec dots = splat(0.0f);
      for (int64_t j = 0; j < width; j += LANES)
        dots = fused(load(g + j) * load(weight + j), load(row + j), dots);
      const float pull = sum(dots) * r * r * r / width;
      for (int64_t j = 0; j < width; j += LANES) {
        const vec w = load(weight + j), v = load(row + j);
        const int64_t at = (first + i) * width + j;
        const vec through = fused(v, splat(-pull), load(residual + at));
        store(out + at, fused(load(g + j) * w, splat(r), through));
        store(normed + at, v * r * w);
      }
    }
    if (next) enter(*next, first, last, out + first * width);
  });
}

// silu(gate) · up (Shazeer 2020, SwiGLU) of what leaves `before`, gate and up side by side.
API void swiglu(const Side* before, int64_t n, const Side* next) {
  const int64_t width = next->width;
  for_blocks(n, 3 * BLOCK * width, [&](int64_t first, int64_t last, float* scratch) {
    float* both = place(before->values, first, 2 * width, scratch);
    float* inner = place(next->values, first, width, scratch + 2 * BLOCK * width);
    leave(*before, first, last, both);
    for (int64_t i = 0; i < last - first; i++) {
      const float *gate = both + i * 2 * width, *up = gate + width;
      for (int64_t j = 0; j < width; j += LANES) {
        const vec g = load(gate + j);
        store(inner + i * width + j, g / (1.0f + exponential(-g)) * load(up + j));
      }
    }
    enter(*next, first, last, inner);
  });
}

// What leaves `before` is the gradient of `swiglu`'s output; `next->values` gets that of gate and
// up, `inner` the output again.
API void swiglu_backward(const Side* before, const float* gate_up, int64_t n, float* inner,
                         const Side* next) {
  const int64_t width = before->width;
  for_blocks(n, BLOCK * width, [&](int64_t first, int64_t last, float* scratch) {
    float* grad = place(before->values, first, width, scratch);
    leave(*before, first, last, grad);
    float* out = next->values + first * 2 * width;
    for (int64_t i = 0; i < last - first; i++) {
      const float *gate = gate_up + (first + i) * 2 * width, *up = gate + width;
      float *d_gate = out + i * 2 * width, *d_up = d_gate + width;
      for (int64_t j = 0; j < width; j += LANES) {
        const vec g = load(gate + j), u = load(up + j), d = load(grad + i * width + j);
        const vec sigmoid = 1.0f / (1.0f + exponential(-g)), silu = g * sigmoid;
        store(d_gate + j, d * u * sigmoid * (1.0f + g - silu));
        store(d_up + j, d * silu);
        store(inner + (first + i) * width + j, silu * u);
      }
    }
    enter(*next, first, last, out);
  });
}

// What leaves `before`, turned.
API void rotary(const Side* before, int64_t n, const Rotary* how) {
  const int64_t width = before->width;
  for_blocks(n, 0, [&](int64_t first, int64_t last, float*) {
    float* rows = before->values + first * width;
    leave(*before, first, last, rows);
    for (int64_t i = first; i < last; i++) rotate(*how, i, rows + (i - first) * width, 1.0f);
  });
}

// The gradient through `rotary`, in place; then it enters `next`.
API void rotary_backward(float* grad, int64_t n, const Rotary* how, const Side* next) {
  const int64_t width = next->width;
  for_blocks(n, 0, [&](int64_t first, int64_t last, float*) {
    float* rows = grad + first * width;
    for (int64_t i = first; i < last; i++) rotate(*how, i, rows + (i - first) * width, -1.0f);
    enter(*next, first, last, rows);
  });
}

// C (m, n) = A^T B for A (k, m) and B (k, n) with rows `lda` and `ldb` apart: gradients of weights.
API void transposed_product(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                            const float* b, int64_t ldb, float* c) {
  constexpr int64_t WIDTH = PANEL * LANES;
  // Rows of B lie on pages and in cache sets of their own: too many of them push each other out
  // between two tiles. The sums are the same to the bit.
  constexpr int64_t DEPTH = 64;
#pragma omp parallel for schedule(static)
  for (int64_t j = 0; j < n; j += WIDTH) {
    const auto add = [&](int64_t p, const auto& start) {
      product(m, std::min(WIDTH, n - j), std::min(DEPTH, k - p), a + p * lda, 1, lda,
              as_rows(b + p * ldb + j, ldb), c + j, n, start);
    };
    add(0, Zero{});
    for (int64_t p = DEPTH; p < k; p += DEPTH) add(p, Keep{c + j, n});
  }
}
