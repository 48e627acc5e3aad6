// Causal attention over rows that stand one after the other, without padding or masks.
#include <algorithm>
#include <cmath>
#include <vector>

#include "simd.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {

constexpr int64_t BLOCK = 24;  // queries read at once

// Where a token's queries, keys and values stand: (heads + 2 · kv_heads) vectors of `width`.
struct Layout {
  int64_t heads, kv_heads, width;
  int64_t token() const { return (heads + 2 * kv_heads) * width; }
  int64_t key(int64_t h) const { return (heads + h) * width; }
  int64_t value(int64_t h) const { return (heads + kv_heads + h) * width; }
  int64_t group() const { return heads / kv_heads; }
};

int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// Rows (n, width) → (width, padded n), zeros beyond n.
void transpose(const float* rows, int64_t n, int64_t width, float* out) {
  const int64_t ld = padded(n);
  for (int64_t j = 0; j < width; j++) {
    for (int64_t i = 0; i < n; i++) out[j * ld + i] = rows[i * width + j];
    std::fill(out + j * ld + n, out + (j + 1) * ld, 0.0f);
  }
}

void add(const float* from, int64_t width, float* to) {
  for (int64_t j = 0; j < width; j += LANES) store(to + j, load(to + j) + load(from + j));
}

// Which tokens of a segment see each other, if not simply all earlier ones.
struct Mask {
  const uint8_t* seen;  // (size, size), null for none
  int64_t size, first;  // the block's first query
  const int64_t* hidden;  // (queries, 2) of the segment's tokens, from and up to; null for none
  bool hides(int64_t query, int64_t key) const { return !seen[(first + query) * size + key]; }
};

// Scores of a block of queries → weights and their `sums`, where query i sees the first `seen` + i
// keys, the last `first` + i + 1 of which are the segment's own; the rest of its row of `ld`
// becomes zero. `logs` gets the logarithm of each row's sum of exponentials.
void softmax(float* scores, int64_t ld, int64_t queries, int64_t seen, const Mask& mask,
             float scale, float* sums, float* logs) {
  for (int64_t i = 0; i < queries; i++) {
    float* row = scores + i * ld;
    const int64_t keys = seen + i, width = padded(keys), own = mask.first + i + 1;
    std::fill(row + keys, row + width, -1e30f);
    if (mask.seen)
      for (int64_t j = 0; j < own; j++)
        if (mask.hides(i, j)) row[keys - own + j] = -1e30f;
    float* mine = row + keys - own;
    if (mask.hidden) std::fill(mine + mask.hidden[2 * i], mine + mask.hidden[2 * i + 1], -1e30f);
    vec top = load(row);
    for (int64_t j = LANES; j < width; j += LANES) top = larger(top, load(row + j));
    const float most = largest(top) * scale;
    vec total = splat(0.0f);
    for (int64_t j = 0; j < width; j += LANES) {
      const vec e = exponential(fused(load(row + j), splat(scale), splat(-most)));
      store(row + j, e);
      total += e;
    }
    std::fill(row + keys, row + ld, 0.0f);
    if (mask.seen)
      for (int64_t j = 0; j < own; j++)
        if (mask.hides(i, j)) row[keys - own + j] = 0.0f;
    if (mask.hidden) std::fill(mine + mask.hidden[2 * i], mine + mask.hidden[2 * i + 1], 0.0f);
    sums[i] = sum(total);
    logs[i] = most + std::log(sums[i]);
  }
}

// Keys transposed, and values, of all that a segment's queries may see, in order.
struct Seen {
  int64_t count = 0, ld = 0;
  std::vector<float> keys, values;  // (width, ld), (count, width)
};

Seen gather(const Layout& at, int64_t head, const float* past, int64_t past_tokens,
            const float* tokens, const int64_t* ranges, int64_t n_ranges, int64_t first,
            int64_t length) {
  const Layout kept{0, at.kv_heads, at.width};  // of the past, queries are gone
  Seen seen;
  for (int64_t r = 0; r < n_ranges; r++) seen.count += ranges[2 * r + 1];
  seen.count += length;
  seen.ld = padded(seen.count);
  seen.keys.resize(at.width * seen.ld);  // zeros
  seen.values.resize(seen.count * at.width);
  int64_t place = 0;
  const auto append = [&](const Layout& layout, const float* from, int64_t count) {
    for (int64_t i = 0; i < count; i++, place++) {
      const float* token = from + i * layout.token();
      const float* key = token + layout.key(head);
      for (int64_t j = 0; j < at.width; j++) seen.keys[j * seen.ld + place] = key[j];
      std::copy_n(token + layout.value(head), at.width, seen.values.data() + place * at.width);
    }
  };
  for (int64_t r = 0; r < n_ranges; r++) {
    const int64_t start = ranges[2 * r], count = ranges[2 * r + 1];
    if (start < past_tokens)
      append(kept, past + start * kept.token(), count);
    else
      append(at, tokens + (start - past_tokens) * at.token(), count);
  }
  append(at, tokens + first * at.token(), length);
  return seen;
}

}  // namespace

// Queries, keys and values of n tokens (n, heads + 2 · kv_heads, width), in segments: a segment's
// tokens see each other causally, and before that, whole, the segment's ranges. `segments` holds
// (first token, tokens, first range, ranges), `ranges` (first token, tokens), where tokens below
// `past_tokens` are those of `past` (past_tokens, 2 · kv_heads, width), and the others follow.
// In segments from `first_tree` on, a token sees only those earlier ones that `tree` (size, size)
// says. `hidden` (n, 2) says which tokens of its segment, from the first up to the second, a token
// does not see though they stand before it; null for none.
// out (n, heads, width); logs (n, heads), the logarithms of the softmax's sums.
API void attention(const float* tokens, int64_t heads, int64_t kv_heads, int64_t width,
                   const float* past, int64_t past_tokens, const int64_t* segments,
                   int64_t n_segments, const int64_t* ranges, int64_t first_tree,
                   const uint8_t* tree, int64_t tree_size, const int64_t* hidden, float scale,
                   float* out, float* logs) {
  const Layout at{heads, kv_heads, width};
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < n_segments * kv_heads; task++) {
    const int64_t *segment = segments + task / kv_heads * 4, head = task % kv_heads;
    const int64_t first = segment[0], length = segment[1];
    const Seen seen = gather(at, head, past, past_tokens, tokens, ranges + 2 * segment[2],
                             segment[3], first, length);
    const int64_t before = seen.count - length;
    const uint8_t* visible = task / kv_heads < first_tree ? nullptr : tree;
    std::vector<float> scores(std::min(BLOCK, length) * seen.ld);
    float sums[BLOCK], log_sums[BLOCK];
    for (int64_t i = 0; i < length; i += BLOCK) {
      const int64_t block = std::min(BLOCK, length - i), limit = before + i + block;
      const int64_t ld = padded(limit);
      for (int64_t h = head * at.group(); h < (head + 1) * at.group(); h++) {
        const float* queries = tokens + (first + i) * at.token() + h * width;
        product(block, ld, width, queries, at.token(), 1, as_rows(seen.keys.data(), seen.ld),
                scores.data(), ld, Zero{});
        const Mask mask{visible, tree_size, i, hidden ? hidden + 2 * (first + i) : nullptr};
        softmax(scores.data(), ld, block, before + i + 1, mask, scale, sums, log_sums);
        product(block, width, limit, scores.data(), ld, 1, as_rows(seen.values.data(), width),
                out + ((first + i) * heads + h) * width, heads * width, Zero{});
        for (int64_t q = 0; q < block; q++) {
          float* row = out + ((first + i + q) * heads + h) * width;
          const float inverse = 1.0f / sums[q];
          for (int64_t j = 0; j < width; j += LANES) store(row + j, load(row + j) * inverse);
          logs[(first + i + q) * heads + h] = log_sums[q];
        }
      }
    }
  }
}

// The gradient through `attention` for segments that see no past and no tree, laid out like `tokens`
// (Dao et al. 2022, FlashAttention, appendix B.4). What a segment's queries want of its ranges is
// kept apart and added up afterwards, segment by segment, whoever was first.
API void attention_backward(const float* grad, const float* tokens, const float* out,
                            const float* logs, int64_t heads, int64_t kv_heads, int64_t width,
                            const int64_t* segments, int64_t n_segments, const int64_t* ranges,
                            const int64_t* hidden, float scale, float* d_tokens) {
  const Layout at{heads, kv_heads, width};
  const int64_t token = at.token(), row = heads * width;
  std::vector<std::vector<float>> d_ranges(n_segments * kv_heads);  // (before, 2, width) each
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < n_segments * kv_heads; task++) {
    const int64_t *segment = segments + task / kv_heads * 4, head = task % kv_heads;
    const int64_t first = segment[0], length = segment[1];
    const Seen seen = gather(at, head, nullptr, 0, tokens, ranges + 2 * segment[2], segment[3],
                             first, length);
    const int64_t count = seen.count, before = count - length;
    std::vector<float> keys(count * width), values(width * seen.ld);
    std::vector<float> d_keys(count * width), d_values(count * width);
    for (int64_t i = 0; i < count; i++)
      for (int64_t j = 0; j < width; j++) keys[i * width + j] = seen.keys[j * seen.ld + i];
    transpose(seen.values.data(), count, width, values.data());
    std::vector<float> weights(std::min(BLOCK, length) * seen.ld), d_scores(weights.size());
    for (int64_t i = 0; i < length; i += BLOCK) {
      const int64_t block = std::min(BLOCK, length - i), limit = before + i + block;
      const int64_t ld = padded(limit);
      for (int64_t h = head * at.group(); h < (head + 1) * at.group(); h++) {
        const float* queries = tokens + (first + i) * token + h * width;
        const float *g = grad + (first + i) * row + h * width, *o = out + (first + i) * row + h * width;
        product(block, ld, width, queries, token, 1, as_rows(seen.keys.data(), seen.ld),
                weights.data(), ld, Zero{});
        product(block, ld, width, g, row, 1, as_rows(values.data(), seen.ld), d_scores.data(),
                ld, Zero{});
        for (int64_t q = 0; q < block; q++) {
          float *p = weights.data() + q * ld, *d = d_scores.data() + q * ld;
          const float log = logs[(first + i + q) * heads + h];
          vec dots = splat(0.0f);
          for (int64_t j = 0; j < width; j += LANES)
            dots = fused(load(g + q * row + j), load(o + q * row + j), dots);
          const float delta = sum(dots);
          const int64_t visible = before + i + q + 1;
          for (int64_t j = 0; j < padded(visible); j += LANES) {
            const vec weight = exponential(fused(load(p + j), splat(scale), splat(-log)));
            store(p + j, weight);
            store(d + j, weight * (load(d + j) - delta) * scale);
          }
          std::fill(p + visible, p + ld, 0.0f);
          std::fill(d + visible, d + ld, 0.0f);
          if (hidden) {
            const int64_t* none = hidden + 2 * (first + i + q);
            std::fill(p + before + none[0], p + before + none[1], 0.0f);
            std::fill(d + before + none[0], d + before + none[1], 0.0f);
          }
        }
        product(block, width, limit, d_scores.data(), ld, 1, as_rows(keys.data(), width),
                d_tokens + (first + i) * token + h * width, token, Zero{});
        product(limit, width, block, d_scores.data(), 1, ld, as_rows(queries, token),
                d_keys.data(), width, Keep{d_keys.data(), width});
        product(limit, width, block, weights.data(), 1, ld, as_rows(g, row), d_values.data(),
                width, Keep{d_values.data(), width});
      }
    }
    for (int64_t i = 0; i < length; i++) {
      float* to = d_tokens + (first + i) * token;
      std::copy_n(d_keys.data() + (before + i) * width, width, to + at.key(head));
      std::copy_n(d_values.data() + (before + i) * width, width, to + at.value(head));
    }
    std::vector<float>& apart = d_ranges[task];
    apart.resize(2 * before * width);
    for (int64_t i = 0; i < before; i++) {
      std::copy_n(d_keys.data() + i * width, width, apart.data() + 2 * i * width);
      std::copy_n(d_values.data() + i * width, width, apart.data() + (2 * i + 1) * width);
    }
  }
#pragma omp parallel for
  for (int64_t head = 0; head < kv_heads; head++)
    for (int64_t s = 0; s < n_segments; s++) {
      const int64_t* segment = segments + 4 * s;
      const float* from = d_ranges[s * kv_heads + head].data();
      for (int64_t r = segment[2]; r < segment[2] + segment[3]; r++)
        for (int64_t i = 0; i < ranges[2 * r + 1]; i++, from += 2 * width) {
          float* to = d_tokens + (ranges[2 * r] + i) * token;
          add(from, width, to + at.key(head));
          add(from + width, width, to + at.value(head));
        }
    }
}
