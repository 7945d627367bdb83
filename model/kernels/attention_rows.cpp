// Attention on CPUs, beside the matrix products that torch does: softmax with dropout over the rows of a sequence's
// scores, forward and backward, and the two layouts, tokens first and heads first. fp32 inside.
#include <algorithm>
#include <cstring>

#include "rows.h"

// Mirrors attention.py's ctypes structures.
struct Scores {
  void* scores;    // [heads, columns, columns], products of queries and keys; become weights, after dropout
  void* gradient;  // backward: of the weights after dropout; becomes that of the products
  int64_t heads, length, columns;  // rows and columns from `length` on are filler: they become 0
  int64_t first;  // number of the first row, in the key of dropout; filler is not counted
  uint64_t seed;
  float scale, dropout;
  int32_t bf16, threads;
};

struct Layout {
  void* tokens;  // [T, heads, width], `stride` bytes from one token to the next
  void* heads;   // [heads, length with filler, width] for each sequence, one after another; filler becomes 0
  const int32_t *ends, *places;  // [sequences + 1], cumulative lengths, and those with filler
  int64_t sequences, count, stride, width;  // heads; bytes of one head of one token
  int32_t inverse, threads;
};

namespace {

// Weights before dropout, in `into`.
template <typename T>
void softmax(const T* scores, float scale, float* into, int64_t n) {
  float largest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) {
    into[i] = read(scores + i) * scale;
    largest = std::max(largest, into[i]);
  }
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    into[i] = exponential(into[i] - largest);
    sum += into[i];
  }
  const float one = 1 / sum;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) into[i] *= one;
}

// A row of scores, and of their gradient, without filler.
template <typename T>
struct Row {
  T *scores, *gradient;
  int64_t number;  // in the key of dropout
};

template <typename T>
void forward(const Scores& s, const Row<T>& row, float* p) {
  softmax(row.scores, s.scale, p, s.length);
  const Dropout keep(s.dropout, s.seed, row.number);
  if (s.dropout > 0) {
#pragma omp simd
    for (int64_t i = 0; i < s.length; ++i) write(row.scores + i, p[i] * keep(i));
  } else {
#pragma omp simd
    for (int64_t i = 0; i < s.length; ++i) write(row.scores + i, p[i]);
  }
}

// With w = p x keep: the gradient of a product is scale x (keep x g - sum(w x g)) x p.
template <typename T>
void backward(const Scores& s, const Row<T>& row, float* p) {
  float* kept = p + s.length;
  softmax(row.scores, s.scale, p, s.length);
  const Dropout keep(s.dropout, s.seed, row.number);
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < s.length; ++i) {
    kept[i] = keep(i);
    sum += p[i] * kept[i] * read(row.gradient + i);
  }
#pragma omp simd
  for (int64_t i = 0; i < s.length; ++i) {
    write(row.scores + i, p[i] * kept[i]);
    write(row.gradient + i, s.scale * p[i] * (kept[i] * read(row.gradient + i) - sum));
  }
}

template <typename T>
void all(const Scores& s) {
#pragma omp parallel num_threads(s.threads)
  {
    float* scratch = new float[2 * s.length];
#pragma omp for schedule(static)
    for (int64_t i = 0; i < s.heads * s.columns; ++i) {
      const int64_t head = i / s.columns, place = i % s.columns, real = place < s.length ? s.length : 0;
      Row<T> row{static_cast<T*>(s.scores) + i * s.columns, static_cast<T*>(s.gradient) + i * s.columns,
                 s.first + head * s.length + place};
      if (real) s.gradient ? backward(s, row, scratch) : forward(s, row, scratch);
      std::memset(row.scores + real, 0, (s.columns - real) * sizeof(T));
      if (s.gradient) std::memset(row.gradient + real, 0, (s.columns - real) * sizeof(T));
    }
    delete[] scratch;
  }
}

}  // namespace

extern "C" void attention_rows(const Scores* scores) {
  scores->bf16 ? all<uint16_t>(*scores) : all<float>(*scores);
}

extern "C" void attention_layout(const Layout* l) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(l->threads)
  for (int64_t s = 0; s < l->sequences; ++s) {
    for (int64_t n = 0; n < l->count; ++n) {
      const int64_t start = l->ends[s], length = l->ends[s + 1] - start;
      const int64_t place = l->places[s], filled = l->places[s + 1] - place;
      char* tokens = static_cast<char*>(l->tokens) + start * l->stride + n * l->width;
      char* heads = static_cast<char*>(l->heads) + (place * l->count + n * filled) * l->width;
      for (int64_t i = 0; i < length; ++i) {
        char *token = tokens + i * l->stride, *head = heads + i * l->width;
        l->inverse ? std::memcpy(token, head, l->width) : std::memcpy(head, token, l->width);
      }
      if (!l->inverse) std::memset(heads + length * l->width, 0, (filled - length) * l->width);
    }
  }
}
